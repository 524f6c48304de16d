"""The ranks of a job on one machine, as launchers start them: one daemon for all, whatever becomes of the ranks, and none after the job."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixd
import pytest

from ..conftest import SAMPLE_DATA, Script, environment, is_alive, until

Start = Callable[..., Script]

jobs = itertools.count()

# What each launcher puts into the environment of its ranks.
LAUNCHERS = {
    "torchrun": {
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{job}",
    },
    "torchrun-elastic": {
        "TORCHELASTIC_RUN_ID": "run-{job}", "RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1",
        # Another after each restart.
        "MASTER_PORT": "4000{generation}",
    },
    "ray": {
        "RAY_JOB_ID": "{job}", "RAY_RAYLET_PID": "1", "RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "5000{generation}",
    },
    "slurm": {
        "SLURM_JOB_ID": "{job}", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": "{rank}",
        "SLURM_LOCALID": "{rank}",
    },
    "openmpi-5": {
        "PMIX_NAMESPACE": "prterun-node-{job}@1", "PMIX_RANK": "{rank}", "OMPI_COMM_WORLD_RANK": "{rank}", "OMPI_COMM_WORLD_SIZE": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{rank}",
    },
    "openmpi-3": {"OMPI_MCA_ess_base_jobid": "{job}", "OMPI_COMM_WORLD_RANK": "{rank}", "OMPI_COMM_WORLD_SIZE": "3"},
    "mpich": {"PMI_RANK": "{rank}", "PMI_SIZE": "3", "PMI_FD": "9", "MPI_LOCALRANKID": "{rank}"},
    "variables": {"RANK": "{rank}", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{job}"},
}  # fmt: skip

# A launcher that starts three ranks whenever it is asked to; each runs CODE.
LAUNCHER = """
import pathlib, subprocess
def launch(generation):
    ranks = []
    for rank in range(3):
        more = {name: value.format(rank=rank, generation=generation, job=JOB) for name, value in VARIABLES.items()}
        more |= {"NUMBER": str(rank), "GENERATION": str(generation)}
        ranks.append(subprocess.Popen([*WRAPPER, sys.executable, "-c", CODE], env=os.environ | more))
    for rank in ranks: rank.wait()
for generation in range(10):
    launch(generation)
    say("launched")
    sys.stdin.readline()
"""

RANK = f"""
import pathlib
rank, folder = os.environ["NUMBER"], pathlib.Path(os.environ["FOLDER"])
def meet(what):
    "Waits until each rank of this generation has come so far."
    what += "-" + os.environ["GENERATION"]
    pathlib.Path(folder, what + "-" + rank).touch()
    end = time.monotonic() + 60
    while len(list(folder.glob(what + "-*"))) < 3:
        assert time.monotonic() < end, what
        time.sleep(0.005)
data = {str(SAMPLE_DATA)!r}
"""

READ = """
server = mixd.serve(data=data)
server.feed("train", size=16, rank=0, world_size=1).next_batch()
say(server.pid)
meet("read")
"""

DIE = "os.kill(os.getpid(), signal.SIGKILL)\n"


def launcher(script: Start, folder: Path, kind: str, code: str, wrapper: list[str] | None = None) -> Script:
    """Starts a launcher of this kind whose ranks run some code."""
    code = Script.PRELUDE + RANK + code
    # What a failed test has left must not be joined by the next one.
    job = f"{os.getpid()}{next(jobs)}"
    named = f"VARIABLES, WRAPPER, CODE, JOB = {LAUNCHERS[kind]!r}, {wrapper or []!r}, {code!r}, {job!r}\n"
    return script(named + LAUNCHER, FOLDER=str(folder))


def heard(launched: Script, ranks: int = 3) -> list[Any]:
    """What each rank says, until all have ended."""
    said = [launched.heard() for _ in range(ranks)]
    assert launched.heard() == ["launched"]
    return said


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_ranks_share_a_daemon_that_outlives_their_restart_and_ends_with_their_launcher(script: Start, tmp_path: Path, kind: str) -> None:
    launched = launcher(script, tmp_path, kind, READ + DIE)
    [[daemon]] = {tuple(said) for said in heard(launched)}
    assert is_alive(daemon)
    launched.tell()
    assert heard(launched) == [[daemon]] * 3
    assert is_alive(daemon)
    launched.signal(signal.SIGKILL)
    until("the daemon has ended with the launcher", lambda: not is_alive(daemon), 5.0)


@pytest.mark.parametrize("kind", ["torchrun", "slurm", "mpich", "variables"])
def test_a_wrapper_between_launcher_and_rank_is_not_the_launcher(script: Start, tmp_path: Path, kind: str) -> None:
    # The shell stays, and dies with its rank.
    launched = launcher(script, tmp_path, kind, READ + DIE, ["sh", "-c", '"$@"; exit $?', "sh"])
    [[daemon]] = {tuple(said) for said in heard(launched)}
    launched.tell()
    assert heard(launched) == [[daemon]] * 3
    launched.signal(signal.SIGKILL)
    until("the daemon has ended with the launcher", lambda: not is_alive(daemon), 5.0)


def test_a_launcher_may_launch_again_and_again(script: Start, tmp_path: Path) -> None:
    # Each leaves when it likes, and may be the last.
    launched = launcher(script, tmp_path, "variables", READ + "server.close()\n")
    daemons = []
    for _ in range(5):
        [[daemon]] = {tuple(said) for said in heard(launched)}
        daemons.append(daemon)
        until("the daemon has ended with the last rank", lambda daemon=daemon: not is_alive(daemon), 5.0)  # type: ignore[misc]
        launched.tell()
    assert len(set(daemons)) == 5


def test_ranks_that_leave_and_come_back_at_once_are_served(script: Start, tmp_path: Path) -> None:
    code = """
for turn in range(8):
    with mixd.serve(data=data) as server:
        assert len(server.feed("train", size=16, rank=0, world_size=1).next_batch()) == 64
say("served")
"""
    assert heard(launcher(script, tmp_path, "slurm", code)) == [["served"]] * 3


def test_ranks_with_other_data_or_options_have_a_daemon_each_in_any_order(script: Start, tmp_path: Path) -> None:
    other = shutil.copytree(SAMPLE_DATA, tmp_path / "other")
    code = f"""
wanted = [dict(data=data), dict(data={str(other)!r}), dict(data=data, workers=1)]
servers = {{number: mixd.serve(**wanted[number]) for number in (int(rank), (int(rank) + 2) % 3, (int(rank) + 1) % 3)}}
say(*(servers[number].pid for number in range(3)))
meet("served")
"""
    [daemons] = {tuple(said) for said in heard(launcher(script, tmp_path, "torchrun", code))}
    assert len(set(daemons)) == 3


# The first rank is about to start the daemon, and the others wait for it, when it comes to an END.
STARTING = """
if rank == "0":
    def launched(*_, **__):
        pathlib.Path(folder, "starting").touch()
        while len(list(folder.glob("waiting-*"))) < 2: time.sleep(0.005)
        END
    mixd.rendezvous.Launched = launched
else:
    while not pathlib.Path(folder, "starting").exists(): time.sleep(0.005)
    lock = mixd.rendezvous._lock_file
    def look(file):
        "Notes that the lock is another's."
        is_mine = lock(file)
        is_mine or pathlib.Path(folder, "waiting-" + rank).touch()
        return is_mine
    mixd.rendezvous._lock_file = look
try:
    server = mixd.serve(data=data)
    say(server.pid)
    while len(list(folder.glob("served-*"))) < 2: pathlib.Path(folder, "served-" + rank).touch()
except mixd.NoDaemonError as error: say(str(error))
"""


def test_the_next_rank_starts_the_daemon_where_the_first_was_killed_as_it_did(script: Start, tmp_path: Path) -> None:
    code = STARTING.replace("END", "os.kill(os.getpid(), signal.SIGKILL)")
    said = heard(launcher(script, tmp_path, "slurm", code), ranks=2)
    assert said[0] == said[1] and isinstance(said[0][0], int)


def test_who_waits_for_a_start_that_fails_is_told_why(script: Start, tmp_path: Path) -> None:
    code = STARTING.replace("END", "raise mixd.NoDaemonError('the disk is full')")
    assert heard(launcher(script, tmp_path, "slurm", code)) == [["the disk is full"]] * 3


def test_a_rank_that_looked_before_the_daemon_was_there_and_locks_after_it_joins(script: Start, tmp_path: Path) -> None:
    code = """
if rank == "0":
    while len(list(folder.glob("opening-*"))) < 2: time.sleep(0.005)
else:
    opens = mixd.rendezvous._open
    def late(start):
        pathlib.Path(folder, "opening-" + rank).touch()
        while not pathlib.Path(folder, "served").exists(): time.sleep(0.005)
        return opens(start)
    mixd.rendezvous._open = late
server = mixd.serve(data=data)
if rank == "0": pathlib.Path(folder, "served").touch()
say(server.pid)
meet("served")
"""
    assert len({pid for [pid] in heard(launcher(script, tmp_path, "slurm", code))}) == 1


def test_all_ranks_raise_what_the_daemon_says_where_it_does_not_come_up(script: Start, tmp_path: Path) -> None:
    code = """
meet("start")
since = time.monotonic()
try: mixd.serve(data=folder / "nowhere")
except mixd.NoDaemonError as error: say(str(error), time.monotonic() - since)
"""
    launched = launcher(script, tmp_path, "mpich", code)
    for text, seconds in heard(launched):
        assert "did not come up" in text and "nowhere" in text and seconds < 10
    # What is there meanwhile is found.
    launched.tell()
    shutil.copytree(SAMPLE_DATA, tmp_path / "nowhere")
    assert launched.heard() == ["launched"]


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_children_of_multiprocessing_share_a_daemon(tmp_path: Path, method: str) -> None:
    code = tmp_path / "parent.py"
    code.write_text(f"""
import multiprocessing, os, signal
import mixd
def child(barrier):
    server = mixd.serve(data={str(SAMPLE_DATA)!r})
    server.feed("train", size=16).next_batch()
    os.write(1, f"{{server.pid}}\\n".encode())
    barrier.wait(60)
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    for turn in range(2):
        barrier = context.Barrier(4)
        children = [context.Process(target=child, args=(barrier,)) for _ in range(4)]
        for one in children: one.start()
        for one in children: one.join()
""")
    ended = subprocess.run([sys.executable, code], env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    [daemon] = {int(line) for line in ended.stdout.splitlines()}
    assert len(ended.stdout.splitlines()) == 8
    until("the daemon has ended with the parent", lambda: not is_alive(daemon), 5.0)


def test_a_first_rank_that_launches_the_others_is_their_launcher(tmp_path: Path) -> None:
    # As Lightning does it: what the first sets it gives to the others, and a local rank of their own.
    code = tmp_path / "trainer.py"
    code.write_text(f"""
import os, subprocess, sys
import mixd
others = []
if "LOCAL_RANK" not in os.environ:
    os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29514", "WORLD_SIZE": "2", "NODE_RANK": "0", "LOCAL_RANK": "0"}}
    others = [subprocess.Popen([sys.executable, __file__], env=os.environ | {{"LOCAL_RANK": "1", "RANK": "1"}})]
os.environ["RANK"] = os.environ["LOCAL_RANK"]
server = mixd.serve(data={str(SAMPLE_DATA)!r})
server.feed("train", size=16).next_batch()
os.write(1, f"{{server.pid}}\\n".encode())
for other in others: other.wait()
""")
    ended = subprocess.run([sys.executable, code], env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    first, second = (int(line) for line in ended.stdout.splitlines())
    assert first == second
    until("the daemon has ended with the first rank", lambda: not is_alive(first), 5.0)


def test_a_named_socket_serves_one_data_set_with_one_set_of_options(script: Start, tmp_path: Path) -> None:
    code = """
server = mixd.serve(data=data, workers=1, socket=folder / "named.sock")
say(server.pid)
meet("served")
try: mixd.serve(data=data, workers=2, socket=folder / "named.sock")
except mixd.NoDaemonError as error: say(str(error))
meet("tried")
"""
    launched = launcher(script, tmp_path, "torchrun", code)
    said = heard(launched, ranks=6)
    assert len({text for [text] in said if isinstance(text, int)}) == 1
    assert sum("other data or was started with other options (name another socket=)" in str(text) for [text] in said) == 3


def test_a_process_by_itself_is_in_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixd.job import current_job

    for name in {name for variables in LAUNCHERS.values() for name in variables}:
        monkeypatch.delenv(name, raising=False)
    assert current_job() is None
    # A batch script of Slurm, an agent that waits for one process, a driver of Ray.
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "WORLD_SIZE": "1", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    assert current_job() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "many")
    with pytest.raises(mixd.SpecError, match="SLURM_STEP_NUM_TASKS is 'many'"):
        mixd.serve(data=SAMPLE_DATA)
