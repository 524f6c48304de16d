"""Each refusal and each end has its exception; what a program can act on is an attribute, not a text."""

import contextlib
import inspect
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixd
import numpy
import pytest
from mixd.launch import program

from ..conftest import SAMPLE_DATA, Daemon, Script, environment


def refused(server: mixd.Server, **options: Any) -> mixd.MixdError:
    """The exception that a feed with these options is."""
    with pytest.raises(mixd.MixdError) as caught:
        server.feed(**{"size": 16, **options})
    return caught.value


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": "many"},
        {"batch_size": object()},
        {"size": 1.5},
        {"mean": 3},
        {"start": 5},
        {"recipe": 3},
        {"reconnect": -1.0},
        {"delivery": "latest"},
        {"batch_size": numpy.arange(3)},
        {"size": numpy.arange(3)},
        # What the daemon alone knows: how many batches there are.
        {"start": (0, 900)},
    ],
)
def test_any_bad_argument_is_a_spec_error(daemon: Daemon, options: dict[str, Any]) -> None:
    error = refused(daemon.connect(), **options)
    assert type(error) is mixd.SpecError and isinstance(error, ValueError)
    assert (error.keys, error.next) == ((), None)


BAD: list[Any] = [-6, 2**64, 10**400, -(10**30), math.nan, -math.inf, 1e300, "x", b"x", object(), {}, [math.nan] * 3, (10**30, 10**30), 1j]


@pytest.mark.parametrize("name", list(inspect.signature(mixd.Server.feed).parameters)[1:-1])
def test_whatever_an_option_is_given_is_taken_or_a_spec_error(daemon: Daemon, name: str) -> None:
    server = daemon.connect()
    for value in BAD:
        # Other exceptions are not caught.
        with contextlib.suppress(mixd.SpecError):
            server.feed(**{"size": 8, name: value}).close()


def test_rubbish_for_a_place_a_state_or_a_wait_is_a_spec_error(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", size=8)
    state = feed.state_dict()
    for value in BAD:
        uses: list[Callable[[Any], object]] = [feed.seek, lambda value: feed.seek(0, value), feed.epoch, feed.load_state_dict]
        uses += [lambda value, key=key: feed.load_state_dict({**state, key: value}) for key in ("epoch", "index", "spec")]  # type: ignore[misc]
        for use in uses:
            # An empty spec differs in nothing.
            if value != {} or use not in uses[-1:]:
                with pytest.raises(mixd.SpecError):
                    use(value)
        if value != 1e300:
            with pytest.raises(mixd.SpecError, match="reconnect is"):
                mixd.connect(daemon.socket, reconnect=value).feed("train", size=8)
    assert feed.place == (0, 0) and feed.next_batch().index == 0


def test_a_shared_feed_that_differs_names_the_keys_and_one_that_has_passed_its_place(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", size=16, share="a")
    for _ in range(6):
        feed.next_batch()
    other = refused(server, share="a", seed=1, dtype="u8")
    assert isinstance(other, mixd.SpecError) and sorted(other.keys) == ["dtype", "seed"]
    passed = refused(server, share="a", start=(0, 0))
    assert isinstance(passed, mixd.SpecError) and passed.next is not None and passed.next >= (1, 2)
    server.feed("train", size=16, share="a", start=passed.next)


def test_lack_of_room_names_bytes_and_leaves_the_feed(daemon: Daemon) -> None:
    error = refused(daemon.connect(), batch_size=65536, size=128, slots=1000)
    assert type(error) is mixd.NoRoomError and error.kind == "no-room"
    assert error.need_bytes and error.free_bytes is not None and error.need_bytes > error.free_bytes


def test_a_latest_feed_without_a_slot_for_one_more_trainer_refuses_it(daemon: Daemon) -> None:
    server = daemon.connect()
    options: dict[str, Any] = {"size": 16, "share": "few", "delivery": "latest", "slots": 2}
    with server.feed("train", **options):
        error = refused(server, **options)
    assert type(error) is mixd.RefusedError and error.kind == "too-many-trainers"


def test_a_daemon_that_stops_refuses_feeds(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", size=16)
    held = feed.next_batch()
    # It waits three seconds for this process to leave.
    with subprocess.Popen([program(), "stop", "--socket", daemon.socket], env=environment()), pytest.raises(mixd.RefusedError) as caught:
        while True:
            server.feed("val", size=16).close()
    assert (type(caught.value), caught.value.kind) == (mixd.RefusedError, "stopping")
    del held


def test_a_cache_file_that_another_daemon_has_is_the_systems_fault(tmp_path: Path) -> None:
    daemons = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        daemons.append(Daemon(tmp_path / name, f"--cache-file={tmp_path / 'rows'}"))
    try:
        first, second = (daemon.connect() for daemon in daemons)
        first.feed("train", size=16)
        error = refused(second)
        assert (type(error), getattr(error, "kind", None)) == (mixd.RefusedError, "system")
    finally:
        for daemon in daemons:
            daemon.kill()


def test_a_cursor_that_something_wrote_into_is_not_a_slow_trainer(daemon: Daemon) -> None:
    def cursors() -> set[Path]:
        return {path for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and "memfd:mixd-cursor" in os.readlink(path)}

    server, before = daemon.connect(), cursors()
    victim = server.feed("train", size=16, share="a")
    held = victim.next_batch()
    [cursor] = cursors() - before
    other = server.feed("train", size=16, share="a")
    with cursor.open("r+b") as file:
        # Batches released (src/ring/layout.rs).
        file.seek(128)
        file.write(b"\xff" * 8)
    for _ in range(8):
        other.next_batch()
    del held
    with pytest.raises(mixd.EvictedError) as caught:
        victim.next_batch()
    assert type(caught.value) is mixd.CorruptCursorError


def test_one_who_keeps_others_waiting_has_no_corrupt_cursor(daemon: Daemon) -> None:
    slow, fast = (daemon.connect().feed("train", size=16, share="b", max_lag=0.1) for _ in range(2))
    held = slow.next_batch()
    for _ in range(12):
        fast.next_batch()
    del held
    with pytest.raises(mixd.EvictedError) as caught:
        slow.next_batch()
    assert type(caught.value) is mixd.EvictedError


def test_a_feed_that_is_stopped_has_not_failed(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", size=16)
    with subprocess.Popen([program(), "stop", "--socket", daemon.socket], env=environment()):
        with pytest.raises(mixd.FeedEndedError) as caught:
            while True:
                feed.next_batch()
        feed.close()
    assert caught.value.failed is False


def test_a_feed_that_an_image_ends_has_failed(tmp_path: Path) -> None:
    data = shutil.copytree(SAMPLE_DATA, tmp_path / "data")
    next(iter(sorted(data.glob("train/*/*.JPEG")))).write_bytes(b"")
    with mixd.serve(data=data, on_bad_image="fail") as server:
        feed = server.feed("train", size=16)
        with pytest.raises(mixd.FeedEndedError) as caught:
            for _ in feed:
                pass
    assert caught.value.failed is True


def test_who_comes_back_to_the_feed_of_a_newcomer_has_lost_its_daemon(daemon: Daemon, script: Callable[..., Script]) -> None:
    code = """
feed = server.feed("train", size=16, share="a")
for _ in range(8): feed.next_batch()
say("read")
try:
    while True: feed.next_batch()
except mixd.MixdError as error: say(type(error).__name__)
"""
    trainer = script(code, daemon, reconnect=20.0)
    assert trainer.heard() == ["read"]
    trainer.signal(signal.SIGSTOP)
    daemon.kill()
    daemon.start()
    newcomer = daemon.connect().feed("train", size=16, share="a")
    assert newcomer.next_batch().index == 0
    trainer.signal(signal.SIGCONT)
    assert trainer.heard() == ["DaemonGoneError"]


def test_old_names_are_the_same_classes() -> None:
    old = [mixd.DaemonGone, mixd.Evicted, mixd.FeedEnded, mixd.NoDaemon, mixd.SpecRefused]
    assert old == [mixd.DaemonGoneError, mixd.EvictedError, mixd.FeedEndedError, mixd.NoDaemonError, mixd.SpecError]
