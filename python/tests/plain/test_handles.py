"""What a process owns lasts as long as its handle: daemons, rings, batches; and threads share a feed without losing any."""

import contextlib
import errno
import gc
import itertools
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mixd
import pytest
from mixd.limits import check_descriptors

from ..conftest import DEADLINE, SAMPLE_DATA, Daemon, Script, is_alive, job_name, until

Start = Callable[..., Script]


def test_serving_the_same_again_shares_the_daemon_until_the_last_handle_is_gone() -> None:
    server = mixd.serve(data=SAMPLE_DATA, workers=1)
    first, other = server.pid, mixd.serve(data=SAMPLE_DATA, workers=2).pid
    # As a cell of a notebook that runs again; nothing but the name is left of what it made before.
    for _ in range(3):
        server = mixd.serve(data=SAMPLE_DATA, workers=1)
        feed = server.feed("train", batch_size=8, size=16)
        assert (server.pid, feed.daemon_pid) == (first, first)
    until("the other daemon has ended with its handle", lambda: not is_alive(other), 5.0)
    del server
    gc.collect()
    assert feed.next_batch().index == 0 and is_alive(first)
    del feed
    until("the daemon has ended with the last feed", lambda: not is_alive(first), 5.0)


def test_closing_one_of_two_servers_leaves_the_other_its_daemon() -> None:
    with mixd.serve(data=SAMPLE_DATA) as one, mixd.serve(data=str(SAMPLE_DATA)) as other:
        feeds = [server.feed("train", batch_size=8, size=16) for server in (one, other)]
        one.close()
        one.close()
        with pytest.raises(RuntimeError, match="closed"):
            feeds[0].next_batch()
        assert feeds[1].next_batch().index == 0
        pid = other.pid
        assert pid == one.pid
    assert not is_alive(pid) and not other.socket.exists()


def test_a_daemon_that_was_killed_is_not_shared_and_its_end_is_told() -> None:
    server = mixd.serve(data=SAMPLE_DATA)
    feed = server.feed("train", batch_size=8, size=16)
    feed.next_batch()
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(mixd.DaemonGoneError, match=r"is gone .*: it was killed by SIGKILL"):
        while True:
            feed.next_batch()
    with pytest.raises(mixd.NoDaemonError, match=r"no daemon answers .*: it was killed by SIGKILL"):
        feed.seek(3)
    with pytest.raises(mixd.NoDaemonError, match="it was killed by SIGKILL"):
        server.feed("val")
    with mixd.serve(data=SAMPLE_DATA) as next_one:
        assert next_one.pid != server.pid and next_one.feed("train", size=16).next_batch().index == 0


@pytest.mark.parametrize("removed", ["the folder", "the socket alone"])
def test_a_daemon_whose_socket_was_removed_is_named_and_the_next_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = mixd.serve(data=SAMPLE_DATA)
    feed = server.feed("train", batch_size=8, size=16)
    if removed == "the folder":
        shutil.rmtree(server.socket.parent)
    else:
        server.socket.unlink()
    for use in (lambda: server.feed("val"), lambda: feed.seek(5)):
        with pytest.raises(mixd.NoDaemonError, match=r"^the daemon runs, but its socket .*own-.* was removed.*\(call mixd.serve again"):
            use()
    with mixd.serve(data=SAMPLE_DATA) as one, mixd.serve(data=SAMPLE_DATA) as other:
        assert one.pid == other.pid != server.pid and is_alive(server.pid)
        assert feed.next_batch().index == 0
        since = time.monotonic()
        server.close()
        # It has no claim to the lock beside the socket, which is the next one's.
        assert not is_alive(server.pid) and time.monotonic() - since < mixd.launch.END_MAX_S / 2
        assert one.feed("train", size=16).next_batch().index == 0
    assert not list(one.socket.parent.iterdir())


def test_the_kernels_out_of_memory_killer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with mixd.serve(data=SAMPLE_DATA) as server:
        feed = server.feed("train", batch_size=8, size=16)
        killed = mixd.launch._oom_kills() + 2
        os.kill(server.pid, signal.SIGKILL)
        monkeypatch.setattr(mixd.launch, "_oom_kills", lambda: killed)
        with pytest.raises(mixd.DaemonGoneError, match="out-of-memory killer has killed 2 processes of this cgroup since it started"):
            while True:
                feed.next_batch()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of this one that has 128 MiB of memory and no swap, for the two in it, `trainer` and `filler`."""
    entries = [line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    found = sorted((2 if controllers == "" else 1, path) for controllers, path in entries if controllers in ("", "memory"))
    if not found:
        pytest.skip("this process is in no memory cgroup")
    version, path = found[0]
    own = Path("/sys/fs/cgroup", "memory" if version == 1 else "", path.lstrip("/"))
    made = own / f"mixd-test-{os.getpid()}"
    halves = made / "trainer", made / "filler"
    limits = (
        (("memory.limit_in_bytes", 2**27), ("memory.swappiness", 0)) if version == 1 else (("memory.max", 2**27), ("memory.swap.max", 0))
    )

    def is_removed() -> bool:
        for folder in (*halves, made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not made.exists()

    try:
        made.mkdir()
        for name, limit in limits:
            (made / name).write_text(str(limit))
        if version == 2:
            (made / "cgroup.subtree_control").write_text("+memory")
        for half in halves:
            half.mkdir()
    except OSError as error:
        is_removed()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield made
    until("all of it has ended", is_removed)


def test_a_daemon_that_the_kernel_kills_for_lack_of_memory_is_told_as_such(cgroup: Path, script: Start) -> None:
    trainer = script(f"""
sys.stdin.readline()
server = mixd.serve(data={str(SAMPLE_DATA)!r}, cache="off")
feed = server.feed("train", batch_size=8, size=16)
feed.next_batch()
say(server.pid)
sys.stdin.readline()
try:
    while True: feed.next_batch()
except mixd.DaemonGoneError as error: say(str(error))
""")
    # The OOM killer may pick a second victim before the first one's memory is free: this one, whose cgroup counts its own kills.
    filler = script("""
import select
daemon = os.pidfd_open(int(sys.stdin.readline()))
taken, size = os.memfd_create("taken"), 96 * 2**20
while not select.select([daemon], [], [], 0.01)[0] and size < 2**28:
    os.posix_fallocate(taken, 0, size)
    size += 2**18
""")
    try:
        for half, process in (("trainer", trainer.process), ("filler", filler.process)):
            (cgroup / half / "cgroup.procs").write_text(str(process.pid))
    except OSError as error:
        pytest.skip(f"no process can be put into a memory cgroup here: {error}")
    trainer.tell()
    [daemon] = trainer.heard()
    # The order of victims.
    for pid, score in ((daemon, 1000), (filler.process.pid, 500)):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score))
    filler.tell(daemon)
    filler.process.wait(timeout=DEADLINE)
    trainer.tell()
    [text] = trainer.heard()
    assert "it was killed by SIGKILL; the kernel's out-of-memory killer has killed 1 processes of this cgroup since it started" in text


def test_a_child_that_was_forked_shares_no_daemon_with_its_parent(script: Start) -> None:
    code = f"""
server = mixd.serve(data={str(SAMPLE_DATA)!r})
child = os.fork()
if child == 0:
    own = mixd.serve(data={str(SAMPLE_DATA)!r})
    say(own.pid, len(own.feed("train", size=16).next_batch()))
    own.close()
    os._exit(0)
os.waitpid(child, 0)
say(server.pid, len(server.feed("train", size=16).next_batch()))
"""
    trainer = script(code)
    (child, *_), (parent, *_) = trainer.heard(), trainer.heard()
    assert child != parent and trainer.finish()[0] == 0


@pytest.mark.parametrize("drop", ["server = own", "server.close()", "with server: pass"])
def test_a_forked_child_that_drops_its_parents_server_keeps_its_own(script: Start, drop: str) -> None:
    trainer = script(f"""
data = {str(SAMPLE_DATA)!r}
server = mixd.serve(data=data)
child = os.fork()
if child == 0:
    own = mixd.serve(data=data)
    {drop}
    say(own.pid, mixd.serve(data=data).pid, len(own.feed("train", size=16).next_batch()))
    os._exit(0)
os.waitpid(child, 0)
say(server.pid, mixd.serve(data=data).pid, len(server.feed("train", size=16).next_batch()))
""")
    child, parent = trainer.heard(), trainer.heard()
    for pid, again, rows in (child, parent):
        assert pid == again and rows == 64
    assert child != parent and trainer.finish()[0] == 0


def test_a_fork_while_another_thread_connects_leaves_the_child_no_connection(script: Start) -> None:
    trainer = script(f"""
import pathlib, socket, threading
connecting, forking = threading.Event(), threading.Event()
class Late(socket.socket):
    "One that is made, and not known yet, when the process is forked."
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        connecting.set()
        assert forking.wait(60)
# The last hook runs first.
os.register_at_fork(before=forking.set)
socket.socket = Late
served = []
thread = threading.Thread(target=lambda: served.append(mixd.serve(data={str(SAMPLE_DATA)!r})))
thread.start()
assert connecting.wait(60)
child = os.fork()
if child == 0:
    # The folder's own descriptor is gone when its link is read.
    links = [os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir() if path.is_symlink()]
    say(sum(link.startswith("socket:") for link in links))
    os._exit(0)
os.waitpid(child, 0)
thread.join()
say(len(served[0].feed("train", size=16).next_batch()))
""")
    assert trainer.heard() == [0]
    assert trainer.heard() == [64] and trainer.finish()[0] == 0


def test_only_errors_of_a_daemon_that_is_gone_say_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with mixd.serve(data=SAMPLE_DATA) as server:
        shell = int(Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(shell, signal.SIGKILL)
        until("the shell has ended", lambda: not is_alive(shell))
        asked = []

        def how_it_ended(launched: object) -> str:
            asked.append(launched)
            return "it was killed"

        monkeypatch.setattr(mixd.launch.Launched, "how_it_ended", how_it_ended)
        with pytest.raises(mixd.SpecError, match="rank"):
            server.feed("train", size=16, rank=5, world_size=2)
        error = mixd.DaemonGoneError("another is there")
        assert server._part
        server._part.explain(error)
        assert not asked and str(error) == "another is there"
    # Though the process that was started ended long before it.
    assert not server.socket.exists()


def test_a_forked_child_does_not_say_how_its_parents_daemon_ended(script: Start) -> None:
    trainer = script(f"""
server = mixd.serve(data={str(SAMPLE_DATA)!r})
say(server.pid)
sys.stdin.readline()
child = os.fork()
if child == 0:
    try: server.feed("train", size=16)
    except mixd.NoDaemonError as error: say(str(error))
    os._exit(0)
os.waitpid(child, 0)
try: server.feed("train", size=16)
except mixd.NoDaemonError as error: say(str(error))
""")
    [pid] = trainer.heard()
    os.kill(pid, signal.SIGKILL)
    until("the daemon has ended", lambda: not is_alive(pid))
    trainer.tell()
    [child], [parent] = trainer.heard(), trainer.heard()
    assert parent == f"{child}: it was killed by SIGKILL"


def shared_memory() -> list[str]:
    """What this process has of rings: mappings and descriptors."""
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [line for line in [*Path("/proc/self/maps").read_text().splitlines(), *links] if "memfd:mixd" in line]


def test_a_kept_array_keeps_its_own_bytes_and_no_ring(daemon: Daemon) -> None:
    server, kept = daemon.connect(), []
    for _ in range(3):
        with server.feed("train", batch_size=8, size=32, digest=True) as feed:
            kept += [feed.next_batch() for _ in range(9)]
    until("the rings are gone", lambda: not shared_memory())
    assert all(batch.is_intact() for batch in kept)
    arrays = [batch.x.numpy() for batch in kept]
    del kept, feed
    assert all(array.any() for array in arrays)


def test_a_loop_that_was_left_gives_its_ring_back_though_its_batch_is_held(script: Start, daemon: Daemon) -> None:
    code = """
feed = server.feed("train", batch_size=64, size=64)
held, rings = [], []
for _ in range(4):
    for batch in feed: break
    held.append(batch.x)
    rings.append(sum("memfd:mixd-ring" in line for line in open("/proc/self/maps")))
say(rings, [x.numpy().any().item() for x in held])
"""
    rings, whole = script(code, daemon).heard()
    assert len(set(rings)) == 1 and whole == [True] * 4


def test_threads_that_share_an_epoch_take_each_batch_once(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=2, size=8, slots=16)
    threads_count, epochs = 8, 6
    for number in range(epochs):
        epoch, begin = feed.epoch(number), threading.Barrier(threads_count)
        taken: list[int] = []
        ended: list[bool] = []

        def read(epoch: mixd.Epoch = epoch, taken: list[int] = taken, ended: list[bool] = ended, begin: threading.Barrier = begin) -> None:
            begin.wait()
            for batch in epoch:
                taken.append(batch.index)
            ended.append(next(epoch, None) is None)

        threads = [threading.Thread(target=read) for _ in range(threads_count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == list(range(100)) and ended == [True] * threads_count
        assert feed.place == (number + 1, 0)


def test_a_move_by_one_thread_is_seen_or_refused_by_the_others(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=2, size=8, slots=8)
    places: list[tuple[int, int]] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                batch = feed.next_batch()
            except RuntimeError as error:
                errors.append(error)
                return
            places.append((batch.epoch, batch.index))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    moved = [(100_000 * turn, turn) for turn in range(1, 9)]
    for place in moved:
        feed.seek(*place)
        until("the first batch from there on", lambda place=place: place in places)  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors and len(places) == len(set(places))
    feed.close()
    with pytest.raises(RuntimeError, match="closed"):
        feed.seek(3)


def test_a_batch_costs_the_same_however_many_are_held(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=1, size=8, shuffle=False)

    def seconds(count: int) -> float:
        begin = time.process_time()
        held.extend(feed.next_batch() for _ in range(count))
        return time.process_time() - begin

    held: list[mixd.Batch] = []
    # The least of many: other processes may take the caches meanwhile.
    with pytest.warns(UserWarning, match="a batch was held for longer"):
        few = min(seconds(100) for _ in range(10))
    seconds(8000)
    many = min(seconds(100) for _ in range(10))
    assert many < 4 * few, f"{few / 100 * 1e6:.0f} and {many / 100 * 1e6:.0f} µs a batch"


def test_what_belongs_to_a_process_is_not_pickled_and_says_what_to_do(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", size=16)
    epoch = iter(feed)
    batch = next(epoch)
    for thing, remedy in (
        (server, "mixd.connect"),
        (feed, "open one"),
        (epoch, "open a feed"),
        (batch, "open a feed"),
        (batch.x, "pickle its"),
    ):
        with pytest.raises(TypeError, match=rf"not pickled \(.*{remedy}"):
            pickle.dumps(thing)


def test_leaving_a_process_at_its_end_ends_its_daemon(script: Start) -> None:
    trainer = script(f"server = mixd.serve(data={str(SAMPLE_DATA)!r})\nfeed = server.feed('train', size=16)\nsay(server.pid)\nsys.exit(3)")
    [pid] = trainer.heard()
    assert trainer.finish()[0] == 3
    until("the daemon has ended", lambda: not is_alive(pid), 5.0)


def test_a_socket_path_that_no_socket_can_have_names_the_limit(tmp_path: Path, script: Start) -> None:
    long = tmp_path / ("x" * 120)
    uses: list[Callable[[], object]] = [lambda: mixd.serve(data=SAMPLE_DATA, socket=long), lambda: mixd.connect(long)]
    for use in uses:
        with pytest.raises(
            mixd.NoDaemonError, match=r"bytes, and the system takes 107: .*\(name a shorter socket=, or set XDG_RUNTIME_DIR"
        ):
            use()
    long.mkdir()
    trainer = script(f"mixd.serve(data={str(SAMPLE_DATA)!r})", XDG_RUNTIME_DIR=str(long))
    code, error = trainer.finish()
    assert code == 1 and "the system takes 107" in error


# Takes part under each limit of descriptors, from the lowest under which it starts on.
LIMITED = f"""
import pathlib, resource
from mixd.rendezvous import part
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
def descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return len(os.listdir("/proc/self/fd"))
before, taken = descriptors(), None
for limit in range(3, 64):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try: taken = part(pathlib.Path({str(SAMPLE_DATA)!r}), {{}}, None)
    except BaseException as error: say(limit, type(error).__name__, str(error), descriptors() - before)
    else: break
descriptors()
server = mixd.serve(data={str(SAMPLE_DATA)!r})
say(limit, "taken", len(server.feed("train", size=16, rank=0, world_size=1).next_batch()), taken is server._part)
sys.stdin.readline()
"""


def test_few_descriptors_are_refused_with_the_limit_and_the_remedy_until_they_suffice(script: Start) -> None:
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job_name(), "RANK": "0"}
    # The second rank joins the first one's daemon.
    for variables, refused_min in (({}, 8), (job, 8), (job, 2)):
        trainer = script(LIMITED, **variables)
        for limit in itertools.count(3):
            said = trainer.heard()
            if said[1] == "taken":
                break
            assert said[:2] == [limit, "NoDaemonError"] and said[3] == 0, said
            assert f"whose limit is {limit} (raise `ulimit -n`" in said[2]
        assert said == [limit, "taken", 64, True] and limit >= 3 + refused_min
    with pytest.raises(mixd.NoDaemonError, match=r"on this machine \(raise `sysctl fs.file-max`"):
        check_descriptors(OSError(errno.ENFILE, "of the whole system"))
