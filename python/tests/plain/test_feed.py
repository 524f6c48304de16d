"""The order of batches: epochs, places, resuming, ranks, sharing; and specs that are refused."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import mixd
import pytest

from ..conftest import SAMPLE_DATA, Daemon, until


def digests(batches: Any) -> list[tuple[int, int, int]]:
    """Places and digests."""
    return [(batch.epoch, batch.index, batch.digest) for batch in batches]


def test_each_for_is_an_epoch_and_any_epoch_can_be_asked_for(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", batch_size=32, size=32, digest=True)
    epochs = [digests(feed) for _ in range(3)]
    assert [[place[:2] for place in epoch] for epoch in epochs] == [[(n, at) for at in range(7)] for n in range(3)]
    assert digests(feed.epoch(1)) == epochs[1]
    assert feed.place == (2, 0)
    assert digests(feed.epoch(0)) == epochs[0]
    # Half an epoch, and its rest.
    half = feed.epoch(2)
    assert len(half) == 7
    taken = digests(next(half) for _ in range(3))
    assert len(feed.epoch(2)) == 4
    assert taken + digests(feed.epoch(2)) == epochs[2]
    # One that is left half-way goes on where the caller says, or with a whole epoch.
    next(feed.epoch(0))
    assert digests(feed.epoch(1)) == epochs[1]
    feed.seek(1, 2)
    assert digests(feed) == epochs[1][2:]
    feed.seek(0, 3)
    next(iter(feed))
    assert digests(feed) == epochs[1] and feed.place == (2, 0)
    for wrong in ((-1, 0), (0, 7), (0, -1)):
        with pytest.raises(ValueError, match="batches from 0 to 6"):
            feed.seek(*wrong)


def test_a_state_goes_on_with_the_next_batch(daemon: Daemon) -> None:
    server = daemon.connect()
    options: dict[str, Any] = {"batch_size": 32, "size": 32, "seed": 3, "digest": True}
    feed = server.feed("train", **options)
    whole = digests(feed) + digests(feed)
    again = server.feed("train", **options)
    taken = digests(again.next_batch() for _ in range(9))
    state = json.loads(json.dumps(again.state_dict()))
    again.close()
    resumed = server.feed("train", **options, slots=6)
    resumed.load_state_dict(state)
    assert resumed.place == (1, 2)
    assert taken + digests(resumed.epoch(1)) == whole
    with pytest.raises(ValueError, match=r"its batch_size \(32, not 16\), mix"):
        server.feed("train", batch_size=16, size=32, seed=3, mixup=None).load_state_dict(state)


def test_an_interrupted_wait_leaves_a_resumed_feed_where_it_is(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=32, size=16)
    feed.seek(3, 5)
    reader = feed._reader

    class Interrupted:
        place = feed.place

        batches = len(feed)

        def next_batch(self, epoch: int) -> mixd.Batch:
            raise KeyboardInterrupt

    feed._reader = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        next(iter(feed))
    feed._reader = reader
    assert [(batch.epoch, batch.index) for batch in feed] == [(3, 5), (3, 6)]


def test_a_state_of_other_pixels_is_warned_of(daemon: Daemon) -> None:
    state = daemon.connect().feed("train", size=32).state_dict()
    daemon.kill()
    daemon.start("--resize", "fast")
    feed = daemon.connect().feed("train", size=32)
    with pytest.warns(UserWarning, match="not to the bit"):
        feed.load_state_dict({**state, "epoch": 2})
    assert feed.place == (2, 0)


def test_ranks_come_from_the_environment_and_deal_out_each_epoch(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        server = daemon.connect()
        feed = server.feed("train", batch_size=16, size=16)
        assert (feed.spec["rank"], feed.spec["world_size"], len(feed)) == (rank, 3, 5)
        samples += [sample for batch in feed for sample in batch.sample_id.tolist()[: len(batch) - batch.pad]]
        assert server.feed("val", rank=0, world_size=1, size=16).spec["world_size"] == 1
    assert sorted(samples) == list(range(200))


def test_ranks_that_launchers_set_by_halves_are_refused(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    server = daemon.connect()
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("WORLD_SIZE", "")
    assert server.feed("train", size=16).spec["world_size"] == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="WORLD_SIZE is 3, but RANK is not set"):
        server.feed("train", size=16)
    assert server.feed("train", rank=2, size=16).spec["world_size"] == 3
    assert server.feed("val", world_size=1, size=16).spec["rank"] == 0
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="the variable RANK is 'first'"):
        server.feed("train", size=16)


def test_options_are_those_of_the_spec(daemon: Daemon) -> None:
    server = daemon.connect()
    spec = server.feed(
        "train", batch_size=5, size=(16, 24), crop="pad_crop:2,reflect", interpolation="bicubic", mixup=0.2, cutmix=1, mix_prob=0.75,
        mix_switch=0.25, lam="per-batch", fold=False, pairing="second-batch", flip=True, repeats=2, shuffle=False, seed=9, last="drop",
        smoothing=0.25, dtype="uint8", layout="nhwc", mean=(0, 0, 0), std=(1, 1, 1), slots=3, digest=True, share="x", delivery="lossless",
        max_lag=7, start="next-epoch", policy="rand-augment:3,12", color_jitter=(0.4, 0.3, 0.2, 0.1, 0.8), grayscale=0.2, blur=0.5,
        solarize=mixd.Solarize(0.1, 99), warp="bicubic", fill=(1, 2, 3), erase="0.25,pixel", grow=(8, 1, 3), views=5, mixup_off_epoch=7,
    ).spec  # fmt: skip
    assert spec == {
        "split": "train", "batch_size": 5, "size": {"height": 16, "width": 24}, "shuffle": False, "seed": 9, "last": "drop",
        "crop": {"kind": "pad_crop", "pad": 2, "mode": "reflect"}, "interpolation": "bicubic", "flip": 0.5, "repeats": 2, "views": 5,
        "grow": {"size": 8, "from": 1, "to": 3},
        "augment": {
            "policy": "rand-augment:3,12", "jitter": {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1, "prob": 0.8},
            "grayscale": 0.2, "blur": {"prob": 0.5, "sigma": [0.1, 2]}, "solarize": {"prob": 0.1, "threshold": 99},
            "warping": {"filter": "bicubic", "fill": [1, 2, 3]},
        },
        "erase": {"prob": 0.25, "mode": "pixel", "count": 1, "area": [0.02, 1 / 3], "ratio": [0.3, 1 / 0.3], "when": "before-mix"},
        "mix": {
            "mixup": 0.2, "cutmix": 1, "prob": 0.75, "switch": 0.25, "per": "per-batch", "fold": False, "pairing": "second-batch",
            "off_epoch": 7,
        },
        "smoothing": 0.25, "dtype": "u8", "layout": "nhwc", "mean": [0, 0, 0], "std": [1, 1, 1], "rank": 0, "world_size": 1, "slots": 3,
        "digest": True, "share": {"name": "x", "delivery": "lossless", "max_lag_s": 7}, "start": "next-epoch", "device": "cpu",
    }  # fmt: skip
    mixes = [server.feed(split, size=16, **options) for split, options in (("train", {}), ("train", {"mixup": None}), ("val", {}))]  # type: ignore[arg-type]
    assert [(feed.is_mixed, feed.batch_size) for feed in mixes] == [(True, 64), (False, 64), (False, 128)]
    # CutMix takes the place of the lesson's mixup, and stands beside one that is asked for.
    alphas = [server.feed("train", size=16, cutmix=1, **options).spec["mix"]["mixup"] for options in ({}, {"mixup": 0.2})]  # type: ignore[arg-type]
    assert alphas == ["none", 0.2]
    zeros = server.feed("train", size=16, mixup=0, cutmix=0)
    assert not zeros.is_mixed
    refused: list[tuple[dict[str, Any], str]] = [
        ({"drop_last": True}, 'drop_last is no option of a feed \\(last="drop"'),
        ({"num_workers": 8}, "num_workers is no option of a feed .*workers=4"),
        ({"mean": (123, 116, 103)}, r"mean is \[123.*in \[0, 1\].*divide those of bytes by 255"),
        ({"std": (58, 57, 57)}, "std is"),
        ({"flip": 5}, r"flip is 5: it must be a probability, in \[0, 1\]"),
    ]
    for wrong, text in refused:
        with pytest.raises(mixd.SpecError, match=text):
            server.feed("train", size=16, **wrong)
    assert len(server.classes) == len(server.class_ids) == 10 and server.class_ids[0].startswith("n0")
    with pytest.raises(AttributeError, match=r"no attribute \"long\".*\.torch\(\)"):
        server.feed("train", size=16).next_batch().label_a.long()  # type: ignore[attr-defined]
    for options, text in (({"delivery": "latest"}, "name a share"), ({"max_lag": 3}, "name a share")):
        with pytest.raises(ValueError, match=text):
            server.feed(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0: it must be 1 to 65536"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"mixup": -1}, "mixup is -1: it must be positive"),
        ({"dtype": "f64"}, r"dtype is .*f64.*`f32`, `f16`, `bf16`, `u8`"),
        ({"split": "test"}, r"split is .*test.*`train` or `val`"),
        ({"rank": 2, "world_size": 2}, "rank is 2: it must be 0 to 1"),
        ({"mean": (0.5,)}, "mean is 1 numbers: it must be three numbers"),
        ({"size": 9000}, r"size is .*9000.*each side 1 to 8192"),
        ({"start": (3, 900)}, "start"),
    ],
)
def test_bad_specs_are_refused_by_name_and_other_feeds_go_on(daemon: Daemon, options: dict[str, Any], text: str) -> None:
    server = daemon.connect()
    feed = server.feed("train", size=16)
    feed.next_batch()
    with pytest.raises(mixd.SpecError, match=text):
        server.feed(**options)
    feed.next_batch()


def test_trainers_that_share_read_the_same_batches(daemon: Daemon) -> None:
    server = daemon.connect()
    feeds = [server.feed("train", size=16, share="sweep", start=(0, 0), digest=True) for _ in range(2)]
    pairs = [[feed.next_batch() for feed in feeds] for _ in range(3)]
    assert all(one.digest == other.digest and one.index == other.index for one, other in pairs)
    del pairs
    for _ in range(9):
        assert feeds[0].next_batch().index == feeds[1].next_batch().index
    # What has passed is gone for one, who stays with the others; what is to come is not.
    with pytest.raises(mixd.SpecError, match=r"epoch 0, batch 0"):
        feeds[0].seek(0)
    assert [tuple(feed.place) for feed in feeds] == [(3, 0), (3, 0)]
    feeds[0].seek(4)
    assert [feeds[1].next_batch().epoch for _ in range(4)] == [3] * 4
    assert [feed.next_batch().epoch for feed in feeds] == [4, 4]
    with pytest.raises(mixd.SpecError, match=r"the shared feed `sweep` is another one: its .*seed \(0, not 1\)"):
        server.feed("train", size=16, share="sweep", digest=True, seed=1)
    assert "2" in daemon.feeds()


def test_a_wait_ends_when_another_thread_closes_the_feed(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", size=16, share="later", start="now")
    waiting = server.feed("train", size=16, share="later", start=(500, 0))
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.next_batch()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert feed.next_batch().index == 0
    waiting.close()
    thread.join(20)
    assert not thread.is_alive() and "closed" in str(caught[0])


def test_serve_starts_a_daemon_of_ones_own_and_ends_it() -> None:
    with mixd.serve(data=SAMPLE_DATA, workers=1, cache="64M") as server:
        train, valid = server.feed("train", batch_size=8, size=16), server.feed("val", size=16)
        held = [train.next_batch(), train.next_batch()]
        assert sum(len(batch) for batch in valid) == 50
        pid = server.pid
        assert "memfd:mixd-ring" in Path("/proc/self/maps").read_text() and train.daemon_pid == pid
    assert not os.path.exists(f"/proc/{pid}") and not server.socket.exists()
    assert held[0].x.numpy().shape == (8, 3, 16, 16)
    server.close()


def test_a_daemon_that_does_not_come_up_is_an_error(capfd: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.raises(mixd.NoDaemonError, match=r"did not come up \(exit code 1\): mixd: .*nowhere"):
        mixd.serve(data=tmp_path / "nowhere")
    assert "nowhere" in capfd.readouterr().err
    with pytest.raises(mixd.NoDaemonError, match=r"(?s)exit code 2\): .*--wokers"):
        mixd.serve(data=SAMPLE_DATA, wokers=3)
    with pytest.raises(mixd.NoDaemonError, match=r"no daemon answers on .*mixd serve"):
        mixd.connect(tmp_path / "mixd.sock")


def test_a_feed_that_nobody_keeps_is_left(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", size=16)
    feed.next_batch()
    assert "train" in daemon.feeds()
    del feed
    until("the feed is left", lambda: str(os.getpid()) not in daemon.feeds())


def test_splits_are_where_they_are_given_and_a_part_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "set").symlink_to(SAMPLE_DATA)
    with mixd.serve(data=tmp_path, splits={"val": tmp_path / "set" / "train", "train": "set/val"}) as server:
        assert (server.feed("train", size=16).samples, server.feed("val", size=16).samples) == (50, 200)
    with mixd.serve(data=SAMPLE_DATA / "train", splits={"train": "."}, holdout=0.1) as server:
        assert (server.feed("train", size=16).samples, server.feed("val", size=16).samples) == (180, 20)
    with mixd.serve(data=SAMPLE_DATA / "train", splits={"train": "."}) as server, pytest.raises(mixd.SpecError, match="--holdout"):
        server.feed("val", size=16)
