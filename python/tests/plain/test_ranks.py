"""The ranks of a job on one machine, as launchers start them: one daemon for all, whatever becomes of the ranks, and none after the job."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mixd
import pytest

from ..conftest import SAMPLE_DATA, Daemon, Script, environment, is_alive, job_name, mixd_output, until

Start = Callable[..., Script]

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
def wait_for(files, count=1):
    "Waits until there are so many of these files."
    end = time.monotonic() + 60
    while len(list(folder.glob(files))) < count:
        assert time.monotonic() < end, files
        time.sleep(0.005)
def meet(what):
    "Waits until each rank of this generation has come so far."
    what += "-" + os.environ["GENERATION"]
    pathlib.Path(folder, what + "-" + rank).touch()
    wait_for(what + "-*", 3)
data = {str(SAMPLE_DATA)!r}
"""

READ = """
server = mixd.serve(data=data)
feed = server.feed("train", size=16, **{} if "RANK" in os.environ else {"rank": int(rank), "world_size": 3})
assert (feed.spec["rank"], feed.spec["world_size"]) == (int(rank), 3)
feed.next_batch()
say(server.pid)
meet("read")
"""

DIE = "os.kill(os.getpid(), signal.SIGKILL)\n"


def launcher(script: Start, folder: Path, kind: str, code: str, wrapper: list[str] | None = None) -> Script:
    """Starts a launcher of this kind whose ranks run some code."""
    code = Script.PRELUDE + RANK + code
    named = f"VARIABLES, WRAPPER, CODE, JOB = {LAUNCHERS[kind]!r}, {wrapper or []!r}, {code!r}, {job_name()!r}\n"
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


def test_a_daemon_outlives_a_restart_though_exceptions_end_the_ranks_with_blocks(script: Start, tmp_path: Path) -> None:
    code = """
with mixd.serve(data=data) as server:
    say(server.pid)
    meet("served")
    raise RuntimeError
"""
    launched = launcher(script, tmp_path, "torchrun", code)
    [[daemon]] = {tuple(said) for said in heard(launched)}
    launched.tell()
    assert heard(launched) == [[daemon]] * 3


@pytest.mark.parametrize("leave", ["server.close()", "with server: sys.exit(0)"])
def test_a_launcher_may_launch_again_and_again(script: Start, tmp_path: Path, leave: str) -> None:
    # Each leaves when it likes, and may be the last.
    launched = launcher(script, tmp_path, "variables", READ + leave)
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
        wait_for("waiting-*", 2)
        END
    mixd.rendezvous.Launched = launched
else:
    wait_for("starting")
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
    pathlib.Path(folder, "served-" + rank).touch()
    wait_for("served-*", 2)
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
    wait_for("opening-*", 2)
else:
    opens = mixd.rendezvous._open
    def late(start):
        pathlib.Path(folder, "opening-" + rank).touch()
        wait_for("served")
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
try:
    server = mixd.serve(data=folder / "nowhere")
    say(server.pid, len(server.feed("train", size=16, rank=0, world_size=1).next_batch()))
    meet("served")
except mixd.NoDaemonError as error: say(str(error), time.monotonic() - since)
"""
    launched = launcher(script, tmp_path, "mpich", code)
    for text, seconds in heard(launched):
        assert "did not come up" in text and "nowhere" in text and seconds < 10
    # What is there meanwhile is found.
    shutil.copytree(SAMPLE_DATA, tmp_path / "nowhere")
    launched.tell()
    [(_, rows)] = {tuple(said) for said in heard(launched)}
    assert rows == 64


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


@pytest.mark.parametrize("served_first", [False, True])
def test_a_first_rank_that_launches_the_others_is_their_launcher(tmp_path: Path, served_first: bool) -> None:
    # As Lightning does it: what the first sets it gives to the others, and a local rank of their own.
    code = tmp_path / "trainer.py"
    code.write_text(f"""
import os, subprocess, sys
import mixd
others = []
if {served_first}:
    # Of the first rank before there is a job, of the others within it.
    before = mixd.serve(data={str(SAMPLE_DATA)!r})
if "LOCAL_RANK" not in os.environ:
    os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": {job_name()!r}, "WORLD_SIZE": "2", "NODE_RANK": "0", "LOCAL_RANK": "0"}}
    others = [subprocess.Popen([sys.executable, __file__], env=os.environ | {{"LOCAL_RANK": "1", "RANK": "1"}})]
os.environ["RANK"] = os.environ["LOCAL_RANK"]
server = mixd.serve(data={str(SAMPLE_DATA)!r})
assert not {served_first} or server.pid == before.pid
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
    refused = "serves other data or was started with other options (close its servers, or name another socket=)"
    assert sum(refused in str(text) for [text] in said) == 3


def test_a_daemon_without_this_processes_key_is_refused_by_name_and_goes_on(daemon: Daemon) -> None:
    with pytest.raises(mixd.NoDaemonError, match=rf"the daemon on {daemon.socket} is that of another process or job"):
        mixd.serve(data=SAMPLE_DATA, socket=daemon.socket)
    assert daemon.connect().feed("train", size=16).next_batch().index == 0
    assert not list(daemon.folder.glob("*.start"))


def test_a_named_socket_leaves_no_files(tmp_path: Path) -> None:
    with mixd.serve(data=SAMPLE_DATA, socket=tmp_path / "named.sock") as server:
        server.feed("train", size=16).next_batch()
    assert not list(tmp_path.iterdir())


def test_the_reason_that_a_killed_starter_has_left_blocks_no_start(tmp_path: Path) -> None:
    start = tmp_path / "named.sock.start"
    start.write_text("the disk is full")
    with mixd.serve(data=SAMPLE_DATA, socket=tmp_path / "named.sock") as server:
        assert len(server.feed("train", size=16).next_batch()) == 64
    assert not start.exists()


def test_a_start_removes_the_files_of_killed_starters_and_no_others() -> None:
    folder = mixd.rendezvous.folder()
    stale, locked = folder / "job-0.sock.start", folder / "job-1.sock.start"
    stale.write_text("the disk is full")
    with locked.open("w") as held, stale.open() as opened:
        assert mixd.rendezvous._lock_file(held.fileno())
        mixd.serve(data=SAMPLE_DATA).close()
        assert not stale.exists() and locked.exists() and opened.read() == ""
    locked.unlink()


def test_sockets_of_other_users_are_refused(tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    own, run = os.geteuid(), tmp_path / "run"
    (run / "mixd").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    (run / "mixd").chmod(0o777)
    with pytest.raises(mixd.NoDaemonError, match=rf"the folder of sockets, {run}/mixd, belongs to user {own} and has mode 0777"):
        mixd.serve(data=SAMPLE_DATA)
    (run / "mixd").chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(mixd.NoDaemonError, match=rf"belongs to user {own} and has mode 0700: .*make it user {own + 1}'s"):
        mixd.serve(data=SAMPLE_DATA)
    with pytest.raises(mixd.NoDaemonError, match=rf"that of user {own}, not of user {own + 1} \(name another socket="):
        mixd.serve(data=SAMPLE_DATA, socket=daemon.socket)


def test_a_relative_socket_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with mixd.serve(data=SAMPLE_DATA, socket="named.sock") as server:
        other = mixd.connect("named.sock")
        monkeypatch.chdir("/")
        feeds = server.feed("train", size=16), other.feed("val", size=16)
        for feed in feeds:
            feed.seek(1)
            assert feed.next_batch().epoch == 1


def test_what_a_daemon_was_started_with_decides_who_shares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, archive = tmp_path / "own.toml", tmp_path / "data.tar"
    recipe.write_text(mixd_output("recipe", "lesson"))
    archive.write_bytes(b"1")
    server = mixd.serve(data=SAMPLE_DATA, recipe="own.toml")
    monkeypatch.chdir("/")
    assert mixd.serve(data=SAMPLE_DATA, recipe=recipe).pid == server.pid
    recipe.write_text(mixd_output("recipe", "imagenette"))
    assert mixd.serve(data=SAMPLE_DATA, recipe=recipe).pid != server.pid

    def key() -> str:
        return mixd.rendezvous._key(archive, {}, "this process")

    keys = [key()]
    assert key() == keys[0]
    archive.write_bytes(b"22")
    keys.append(key())
    monkeypatch.setenv("MIXD_RECIPE", str(recipe))
    keys.append(key())
    recipe.touch()
    keys.append(key())
    assert len(set(keys)) == 4


def test_a_daemon_does_not_wait_for_a_rank_that_reads_no_log(script: Start) -> None:
    trainer = script(f"server = mixd.serve(data={str(SAMPLE_DATA)!r})\nsay(str(server.socket))\nsys.stdin.readline()", RUST_LOG="trace")
    [socket] = trainer.heard()
    trainer.signal(signal.SIGSTOP)
    # More lines than the pipe takes.
    for _ in range(100):
        assert mixd.connect(socket).pid
    trainer.signal(signal.SIGCONT)
    trainer.tell()
    assert "TRACE" in trainer.finish()[1]


@pytest.mark.parametrize(
    ("kind", "launch"),
    {"slurm": "a Slurm step", "openmpi-5": "an Open MPI job", "openmpi-3": "an Open MPI job", "mpich": "an MPI job"}.items(),
)
def test_tasks_whose_part_is_not_known_are_refused(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, kind: str, launch: str) -> None:
    for name, value in LAUNCHERS[kind].items():
        monkeypatch.setenv(name, value.format(rank=2, job=1, generation=0))
    server = daemon.connect()
    remedy = rf"this process is task 2 of 3 of {launch}: give rank=2, world_size=3 .* rank=0, world_size=1 .*init_process_group"
    for given in ({}, {"rank": 2}, {"world_size": 3}):
        with pytest.raises(mixd.SpecError, match=remedy):
            server.feed("train", size=16, **given)  # type: ignore[arg-type]

    def place(**given: int) -> tuple[int, int]:
        spec = server.feed("train", size=16, **given).spec  # type: ignore[arg-type]
        return spec["rank"], spec["world_size"]

    assert place(rank=1, world_size=3) == (1, 3) and place(rank=0, world_size=1) == place(world_size=1) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(mixd.SpecError, match=remedy):
        server.feed("train", size=16)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place() == (1, 2)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    group = {"is_available": lambda: True, "is_initialized": lambda: True, "get_rank": lambda: 4, "get_world_size": lambda: 5}
    monkeypatch.setitem(sys.modules, "torch.distributed", SimpleNamespace(**group))
    assert place() == (4, 5)


def test_a_job_is_known_by_variables_without_a_rank_and_in_its_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixd import job

    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    network = str(os.stat("/proc/self/ns/net").st_ino)
    local = job.current_job()
    assert local and local.id == f"master 127.0.0.1:1 {network}"
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    remote = job.current_job()
    assert remote and network not in remote.id
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    ids = []
    for raylet in (os.getpid(), os.getppid()):
        monkeypatch.setenv("RAY_RAYLET_PID", str(raylet))
        ray = job.current_job()
        ids.append(ray and ray.id)
    assert ids[0] != ids[1]


def test_an_ancestor_that_has_just_ended_is_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixd import job

    def gone(pid: int) -> list[bytes]:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(job, "_stat", gone)
    assert job._launcher("PATH") == os.getpid()


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
