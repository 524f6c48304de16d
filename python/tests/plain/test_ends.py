"""What happens when: trainers and daemons that are killed, stopped, interrupted, forked, too slow (design, section 8)."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import mixd
import pytest

from ..conftest import DEADLINE, SAMPLE_DATA, Daemon, Script, is_alive, mixd_output, until

Start = Callable[..., Script]


def readers(daemon: Daemon, process: int) -> bool:
    """Whether the daemon knows a trainer of this process."""
    return str(process) in daemon.feeds()


def test_a_killed_trainer_costs_nobody_anything(daemon: Daemon, script: Start) -> None:
    feed = daemon.connect().feed("train", size=32, share="a", digest=True)
    code = (
        "feed = server.feed('train', size=32, share='a', digest=True)\nsay('there')\nheld = feed.next_batch()\nsay('holds')\ntime.sleep(60)"
    )
    trainer = script(code, daemon)
    assert trainer.heard() == ["there"]
    # The other joins at the next batch to be made, which needs the slot of one that is read.
    seen = [feed.next_batch().index for _ in range(2)]
    assert trainer.heard() == ["holds"]
    trainer.signal(signal.SIGKILL)
    # It would be waited for, for max_lag, if it were not seen to die.
    start = time.monotonic()
    while len(seen) < 40:
        batch = feed.next_batch()
        assert batch.is_intact()
        seen.append(batch.epoch * 4 + batch.index)
    assert seen == list(range(40)) and time.monotonic() - start < DEADLINE
    until("its place is free", lambda: not readers(daemon, trainer.process.pid), 1.0)


def test_a_killed_daemon_is_an_error_after_what_was_published(daemon: Daemon) -> None:
    feed = daemon.connect(reconnect=0.0).feed("train", size=32, slots=4, digest=True)
    held = feed.next_batch()
    daemon.kill()
    read = []
    with pytest.raises(mixd.DaemonGoneError, match="is gone"):
        while True:
            batch = feed.next_batch()
            assert batch.is_intact()
            read.append(batch.index)
    assert read == list(range(1, 1 + len(read))) and held.is_intact()


def test_a_feed_goes_on_with_the_next_batch_of_the_next_daemon(daemon: Daemon) -> None:
    expected = [batch.digest for batch in daemon.connect().feed("train", batch_size=16, size=32, digest=True)]
    feed = daemon.connect(reconnect=DEADLINE).feed("train", batch_size=16, size=32, digest=True)
    digests = []
    for batch in feed:
        if batch.index in (3, 7):
            daemon.kill()
            daemon.start()
        digests.append(batch.digest)
        assert batch.is_intact()
    assert digests == expected
    assert feed.daemon_pid == daemon.process.pid


def test_a_feed_is_left_though_another_daemon_has_taken_the_place_of_its_own(daemon: Daemon) -> None:
    feed = daemon.connect(reconnect=DEADLINE).feed("train", size=32)
    feed.next_batch()
    daemon.kill()
    daemon.start()
    until("the feed has a place there", lambda: readers(daemon, os.getpid()))
    feed.close()
    assert not readers(daemon, os.getpid())


def test_a_seek_that_fails_leaves_the_feed_where_it_is(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", size=32)
    feed.next_batch()
    daemon.kill()
    with pytest.raises(mixd.NoDaemonError):
        feed.seek(7)
    assert feed.place == (0, 1) and feed.state_dict()["index"] == 1


def test_a_daemon_that_makes_other_batches_is_not_taken_for_the_one_that_is_gone(daemon: Daemon) -> None:
    feed = daemon.connect(reconnect=DEADLINE).feed("train", batch_size=16, size=32)
    feed.next_batch()
    daemon.kill()
    daemon.start("--resize", "fast")
    with pytest.raises(mixd.DaemonGoneError, match="does not make the same batches"):
        while True:
            feed.next_batch()
    with pytest.raises(mixd.MixdError):
        feed.next_batch()


def test_a_stopped_daemon_ends_feeds_with_its_reason(daemon: Daemon, script: Start) -> None:
    trainer = script(
        """
feed = server.feed("train", size=32)
say(feed.next_batch().index)
try:
    while True: feed.next_batch()
except mixd.FeedEndedError as error: say(str(error))
""",
        daemon,
    )
    assert trainer.heard() == [0]
    mixd_output("stop", "--socket", daemon.socket)
    assert "the feed ended: the daemon was stopped" in trainer.heard()[0]
    assert trainer.finish()[0] == 0 and daemon.process.wait() == 0


def test_one_who_keeps_others_waiting_is_evicted_and_keeps_what_it_holds(daemon: Daemon) -> None:
    slow, fast = (daemon.connect().feed("train", size=32, share="b", max_lag=0.2, digest=True) for _ in range(2))
    held = slow.next_batch()
    for _ in range(12):
        fast.next_batch()
    assert held.is_intact()
    del held
    with pytest.raises(mixd.EvictedError, match=r"kept others waiting for more than 0.2 s \(read faster"):
        slow.next_batch()


@pytest.mark.parametrize("doing", ["feed.next_batch()", "next(iter(feed))", "server.feed('train', size=24)", "mixd.connect(server.socket)"])
def test_ctrl_c_ends_any_wait_at_once(daemon: Daemon, script: Start, doing: str) -> None:
    trainer = script(
        f"""
feed = server.feed("train", size=32)
feed.next_batch()
say("ready")
sys.stdin.readline()
say("waiting")
try:
    while True: {doing}
except KeyboardInterrupt: say("interrupted")
""",
        daemon,
    )
    assert trainer.heard() == ["ready"]
    # A daemon that is stopped is not gone: whatever is asked of it waits.
    daemon.process.send_signal(signal.SIGSTOP)
    trainer.tell()
    assert trainer.heard() == ["waiting"]
    until("it waits", lambda: is_asleep(trainer.process.pid))
    start = time.monotonic()
    trainer.signal(signal.SIGINT)
    assert trainer.heard() == ["interrupted"]
    assert time.monotonic() - start < 1.0
    daemon.process.send_signal(signal.SIGCONT)
    assert trainer.finish()[0] == 0


@pytest.mark.parametrize("doing", ["server.feed('train', size=24)", "feed.seek(3)", "mixd.connect(server.socket)"])
def test_what_asks_a_stopped_daemon_leaves_neither_thread_nor_descriptor_when_interrupted(
    daemon: Daemon, script: Start, doing: str
) -> None:
    trainer = script(
        f"""
feed = server.feed("train", size=32)
feed.next_batch()
def counts(): return [len(os.listdir("/proc/self/" + what)) for what in ("task", "fd")]
say("ready")
sys.stdin.readline()
for turn in range(6):
    try:
        say("waiting")
        while True: {doing}
    except KeyboardInterrupt: pass
    if turn == 0: first = counts()
end = time.monotonic() + 10
while max(map(int.__sub__, counts(), first)) > 0 and time.monotonic() < end: time.sleep(0.01)
say(first, counts())
""",
        daemon,
    )
    assert trainer.heard() == ["ready"]
    daemon.process.send_signal(signal.SIGSTOP)
    trainer.tell()
    for _ in range(6):
        assert trainer.heard() == ["waiting"]
        until("it waits", lambda: is_asleep(trainer.process.pid))
        trainer.signal(signal.SIGINT)
    first, last = trainer.heard()
    assert last[0] <= first[0] and last[1] <= first[1]
    daemon.process.send_signal(signal.SIGCONT)
    assert trainer.finish()[0] == 0


def is_asleep(process: int) -> bool:
    """Whether a process's main thread sleeps."""
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"


def test_a_signal_handler_runs_while_a_batch_is_waited_for(daemon: Daemon, script: Start) -> None:
    trainer = script(
        """
feed = server.feed("train", size=32)
signal.signal(signal.SIGUSR1, lambda *_: say("handled"))
say("ready")
indices = lambda: [batch.index for batch in feed]
indices()
sys.stdin.readline()
say(*indices())
""",
        daemon,
    )
    assert trainer.heard() == ["ready"]
    daemon.process.send_signal(signal.SIGSTOP)
    trainer.tell()
    trainer.signal(signal.SIGUSR1)
    assert trainer.heard() == ["handled"]
    daemon.process.send_signal(signal.SIGCONT)
    assert trainer.heard() == [0, 1, 2, 3]


def test_a_forked_child_is_refused_and_harms_nothing(daemon: Daemon, script: Start) -> None:
    trainer = script(
        """
feed = server.feed("train", size=32, digest=True)
batch, first = feed.next_batch(), feed.next_batch()
x = batch.x
child = os.fork()
if child == 0:
    for use in (feed.next_batch, lambda: x.numpy(), lambda: batch.label_a, batch.is_intact, lambda: feed.seek(0)):
        try: use()
        except mixd.MixdError as error: say(str(error))
    # What the child drops is its parent's still; and it opens feeds of its own.
    del batch, x, first
    say(len(mixd.connect(os.environ["SOCKET"]).feed("train", size=32).next_batch()))
    os._exit(0)
os.waitpid(child, 0)
say(batch.is_intact(), first.is_intact(), [batch.index for batch in feed.epoch(0)])
""",
        daemon,
    )
    said = [trainer.heard() for _ in range(5)]
    assert all("a child that was forked from it cannot read it (open a feed in the child)" in text for [text] in said)
    assert trainer.heard() == [64]
    assert trainer.heard() == [True, True, [2, 3]]
    assert trainer.finish()[0] == 0


def test_a_child_that_touches_an_array_of_its_parent_ends_with_a_reason(daemon: Daemon, script: Start) -> None:
    trainer = script(
        """
feed = server.feed("train", size=32)
view = memoryview(feed.next_batch().x)
child = os.fork()
if child == 0:
    say(bytes(view)[:1].hex())
    os._exit(0)
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), view.nbytes)
""",
        daemon,
    )
    assert trainer.heard() == [-signal.SIGSEGV, 64 * 3 * 32 * 32 * 4]
    code, error = trainer.finish()
    assert code == 0 and "a process that was forked from a trainer touched a batch of its parent" in error


def test_a_feed_is_left_though_a_child_has_its_sockets(daemon: Daemon) -> None:
    with daemon.connect().feed("train", size=32) as feed:
        feed.next_batch()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        assert readers(daemon, os.getpid())
    try:
        assert not readers(daemon, os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_killed_trainers_place_is_free_though_its_children_live(daemon: Daemon, script: Start) -> None:
    trainer = script(
        """
feed = server.feed("train", size=32)
feed.next_batch()
child = os.fork()
if child == 0:
    time.sleep(60)
say(child)
time.sleep(60)
""",
        daemon,
    )
    [child] = trainer.heard()
    try:
        assert readers(daemon, trainer.process.pid)
        trainer.signal(signal.SIGKILL)
        until("its place is free", lambda: not readers(daemon, trainer.process.pid), 1.0)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_children_do_not_keep_a_daemon_of_ones_own(script: Start) -> None:
    code = f"""
server = mixd.serve(data={str(SAMPLE_DATA)!r})
feed = server.feed("train", size=32)
feed.next_batch()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
if not KILLED: server.close()
say(server.pid, str(server.socket), child)
time.sleep(60)
"""
    for killed in (False, True):
        trainer = script(code.replace("KILLED", str(killed)))
        pid, socket, child = trainer.heard()
        try:
            if killed:
                trainer.signal(signal.SIGKILL)
            until("the daemon has ended", lambda pid=pid, socket=socket: not (is_alive(pid) or os.path.exists(socket)), 5.0)  # type: ignore[misc]
            assert is_alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_may_leave_through_its_parents_with(daemon: Daemon) -> None:
    with daemon.connect() as server, server.feed("train", size=32, digest=True) as feed:
        batch = feed.next_batch()
        child = os.fork()
        if child == 0:
            try:
                server.close()
                feed.close()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert batch.is_intact() and feed.next_batch().is_intact()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_daemon_of_ones_own_ends_however_its_process_does(script: Start, number: signal.Signals) -> None:
    trainer = script(
        f"server = mixd.serve(data={str(SAMPLE_DATA)!r})\nfeed = server.feed('train', size=32)\nfeed.next_batch()\n"
        "say(server.pid, str(server.socket))\ntime.sleep(60)"
    )
    pid, socket = trainer.heard()
    trainer.signal(number)
    trainer.finish()
    until("the daemon has ended", lambda: not os.path.exists(f"/proc/{pid}") and not os.path.exists(socket), 5.0)
