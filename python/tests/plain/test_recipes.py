"""Recipes: where a feed's defaults come from, and the views that they give."""

import struct
import subprocess
from pathlib import Path
from typing import Any

import mixd
import numpy
import pytest

from ..conftest import SAMPLE_DATA, Daemon, mixd_output

# The spec that `recipe="torchvision-v1"` stands for, without what every feed has.
TORCHVISION = {
    "size": {"height": 224, "width": 224},
    "crop": {"kind": "random_resized_crop", "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3]},
    "interpolation": "bilinear",
    "flip": 0.5,
    "repeats": 1,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "mix": {"mixup": "none", "cutmix": "none", "prob": 1.0, "switch": 0.5, "per": "per-image", "fold": False, "pairing": "shuffle"},
}
TORCHVISION_VAL = TORCHVISION | {"crop": {"kind": "short_center", "resize": 256}, "flip": 0.0}
TORCHVISION_VAL["mix"] = {**TORCHVISION["mix"], "fold": True}  # type: ignore[dict-item]


def part(feed: mixd.Feed) -> dict[str, Any]:
    """The keys of a feed's spec that a recipe decides."""
    return {key: feed.spec[key] for key in TORCHVISION}


def sizes(split: str) -> list[tuple[int, int]]:
    """Height and width of each sample: JPEG files in the order of class folders, then of names."""
    found = []
    for path in sorted((SAMPLE_DATA / split).glob("*/*")):
        data, at = path.read_bytes(), 2
        # Segments up to the frame header (SOF0 to SOF2), which has the size.
        while data[at + 1] not in (0xC0, 0xC1, 0xC2):
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        found.append(struct.unpack(">HH", data[at + 5 : at + 9]))
    return found


def test_a_recipe_is_a_name_a_file_or_an_object(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(mixd_output("recipe", "torchvision-v1"))
    server = daemon.connect()
    for recipe in ("torchvision-v1", path, str(path), mixd.Recipe()):
        assert part(server.feed("train", recipe=recipe)) == TORCHVISION, recipe
        assert part(server.feed("val", recipe=recipe)) == TORCHVISION_VAL, recipe
    mine = mixd.Recipe(
        train=mixd.TrainView(size=(96, 128), crop=mixd.Crop.padded(4, "reflect"), interpolation="bicubic", flip=0.25, repeats=3,
                             mix=mixd.Mix(mixup=0.2, cutmix=1.0, prob=0.9, switch=0.3, per="per-pair", fold=True, pairing="reverse")),
        val=mixd.ValView(size=64, crop=mixd.Crop.squash_center(72)), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    assert part(server.feed("train", recipe=mine)) == {
        "size": {"height": 96, "width": 128}, "crop": {"kind": "pad_crop", "pad": 4, "mode": "reflect"}, "interpolation": "bicubic",
        "flip": 0.25, "repeats": 3, "mean": [0.5] * 3, "std": [0.25] * 3,
        "mix": {"mixup": 0.2, "cutmix": 1.0, "prob": 0.9, "switch": 0.3, "per": "per-pair", "fold": True, "pairing": "reverse"},
    }  # fmt: skip
    val = server.feed("val", recipe=mine).spec
    assert (val["size"]["height"], val["crop"]) == (64, {"kind": "squash_center", "resize": 72})


def test_every_preset_opens_a_feed_of_either_split(daemon: Daemon) -> None:
    server = daemon.connect()
    names = [line.split()[0] for line in mixd_output("recipe").splitlines()]
    assert {"lesson", "torchvision-v2", "a2", "deit3", "ffcv-rn50", "dino-local"} <= set(names)
    for name in names:
        views = {"dino": 2, "dino-local": 8, "simclr": 2}.get(name, 1)
        for split, rows in (("train", 200 * views), ("val", 50)):
            assert sum(len(batch) for batch in server.feed(split, recipe=name, size=32)) == rows, name  # type: ignore[arg-type, misc]


def test_every_preset_is_a_recipe_in_python_too(daemon: Daemon) -> None:
    mine = mixd.Recipe(
        train=mixd.TrainView(
            size=192, grow=mixd.Grow(160, 11, 13), views=2, erase=mixd.Erase(0.25, "pixel", when="after-mix"),
            augment=mixd.Augment(
                "rand-m9-mstd0.5-inc1", mixd.ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8), 0.2, mixd.Blur(1.0), mixd.Solarize(0.0),
                mixd.Warping("bicubic", (124, 116, 104)), mixd.LaterViews(mixd.Blur(0.1), mixd.Solarize(0.2)),
            ),
            mix=mixd.Mix(0.8, 1.0, off_epoch=5),
        ),
    )  # fmt: skip
    spec = daemon.connect().feed("train", recipe=mine).spec
    assert spec["grow"] == {"size": 160, "from": 11, "to": 13} and spec["views"] == 2 and spec["mix"]["off_epoch"] == 5
    assert spec["augment"]["later"] == {"blur": {"prob": 0.1, "sigma": [0.1, 2.0]}, "solarize": {"prob": 0.2, "threshold": 128.0}}
    assert (spec["erase"]["when"], spec["augment"]["warping"]["fill"]) == ("after-mix", [124, 116, 104])


def test_views_grow_and_batches_follow(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", recipe="torchvision-v1", batch_size=100, size=96, grow=(64, 0, 2))
    assert [batch.x.shape for batch in feed.epoch(0)] == [(100, 3, 64, 64)] * 2
    assert [batch.x.shape for batch in feed.epoch(1)] == [(100, 3, 64, 64)] * 2
    assert [batch.x.shape for batch in feed.epoch(2)] == [(100, 3, 96, 96)] * 2
    feed.seek(0)
    assert feed.next_batch().x.numpy().shape == (100, 3, 64, 64)


def test_options_take_precedence_over_the_recipe(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed(
        "train", recipe="torchvision-v1", size=112, crop="random_resized_crop:0.35,1", interpolation="bicubic", flip=False, repeats=2,
        mixup=0.2, cutmix=1.0, mix_prob=0.5, mix_switch=0.1, lam="per-batch", fold=True, pairing="roll", mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    assert part(feed) == {
        "size": {"height": 112, "width": 112}, "crop": {"kind": "random_resized_crop", "scale": [0.35, 1.0], "ratio": [0.75, 4 / 3]},
        "interpolation": "bicubic", "flip": 0.0, "repeats": 2, "mean": [0, 0, 0], "std": [1, 1, 1],
        "mix": {"mixup": 0.2, "cutmix": 1.0, "prob": 0.5, "switch": 0.1, "per": "per-batch", "fold": True, "pairing": "roll"},
    }  # fmt: skip
    # What is resized before a centre crop keeps its proportion to the crop, unless the crop is given.
    assert server.feed("val", recipe="torchvision-v1", size=112).spec["crop"] == {"kind": "short_center", "resize": 128}
    assert server.feed("val", recipe="torchvision-v1", size=112, crop="short_center:120").spec["crop"]["resize"] == 120
    mixed = mixd.Recipe(train=mixd.TrainView(mix=mixd.Mix(mixup=0.2, cutmix=1.0)))
    assert server.feed("train", recipe=mixed, mixup=None).spec["mix"] == {**TORCHVISION["mix"], "cutmix": 1.0}  # type: ignore[dict-item]
    assert not server.feed("train", recipe=mixed, mixup=None, cutmix=None).is_mixed


def test_a_crop_is_a_text_or_an_object(daemon: Daemon) -> None:
    server = daemon.connect()
    crop = mixd.Crop
    for one in (crop(), crop.short_center(40), crop.squash_center(36), crop.random_resized((0.35, 1)), crop.padded(4, "reflect")):
        expected = server.feed("train", recipe=mixd.Recipe(train=mixd.TrainView(crop=one)), size=32, batch_size=4).spec["crop"]
        # What a recipe resizes before a centre crop is in proportion to its size.
        expected = expected if one.resize is None else {**expected, "resize": one.resize}
        for given in (one, str(one)):
            assert server.feed("train", crop=given, size=32, batch_size=4).spec["crop"] == expected, given


def test_random_resized_crops_and_flips_are_drawn_anew_for_each_use(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=64, recipe="torchvision-v1", size=176, digest=True)
    images, seen = sizes("train"), []
    for _ in range(2):
        crops, flips = numpy.zeros((200, 4), int), numpy.zeros(200, int)
        for batch in feed:
            rows = len(batch)
            assert (batch.x.shape, batch.x.dtype, batch.is_intact()) == ((rows, 3, 176, 176), "float32", True)
            assert [(array.shape, array.dtype) for array in (batch.crop, batch.cut, batch.flip)] == [
                ((rows, 4), "int32"), ((rows, 4), "int32"), ((rows,), "uint8"),
            ]  # fmt: skip
            samples = batch.sample_id.numpy()
            crops[samples], flips[samples] = batch.crop.numpy(), batch.flip.numpy()
            assert batch.cut.tolist() == [[0] * 4] * rows and batch.lam.tolist() == [1.0] * rows
            assert batch.digest and numpy.isfinite(batch.x.numpy()).all()
        top, left, height, width = crops.T
        whole = numpy.array(images)
        assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
        assert (top + height <= whole[:, 0]).all() and (left + width <= whole[:, 1]).all()
        share = height * width / whole.prod(1)
        # Sides are rounded to pixels.
        assert share.min() < 0.25 and share.max() > 0.8 and (share > 0.07).all()
        assert len({tuple(crop) for crop in crops.tolist()}) > 190
        assert set(flips) == {0, 1} and 60 < flips.sum() < 140
        seen.append((crops, flips))
    assert (seen[0][0] != seen[1][0]).any(1).sum() > 190 and (seen[0][1] != seen[1][1]).any()


def test_a_view_is_the_recorded_box_of_the_image(daemon: Daemon) -> None:
    server = daemon.connect()
    # An image whole, and a view that is cut out of it by hand: pad_crop takes windows without a resize.
    options: dict[str, Any] = {"batch_size": 16, "seed": 2, "mixup": None, "dtype": "u8", "shuffle": False}
    [crops, whole] = [
        server.feed("train", crop=crop, size=96, flip=flip, **options) for crop, flip in (("pad_crop:0", 0.5), ("pad_crop:0", 0))
    ]
    cropped, plain = crops.next_batch(), whole.next_batch()
    # The flip has draws of its own: the same windows, mirrored where the flip is 1.
    assert cropped.crop.tolist() == plain.crop.tolist() and set(cropped.flip.tolist()) == {0, 1} and not any(plain.flip.tolist())
    for own, other, flipped in zip(cropped.x.numpy(), plain.x.numpy(), cropped.flip.tolist(), strict=True):
        assert (own == (other[..., ::-1] if flipped else other)).all()


def test_validation_views_are_centre_crops_without_chance(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("val", recipe="torchvision-v1", size=176, digest=True)
    first, second = feed.next_batch(), feed.next_batch()
    assert (first.x.shape, first.index, second.epoch) == ((50, 3, 176, 176), 0, 1)
    assert first.sample_id.tolist() == list(range(50)) and first.is_intact()
    assert not first.crop.numpy().any() and not first.flip.numpy().any() and not first.cut.numpy().any()
    assert (first.x.numpy() == second.x.numpy()).all()
    # Not the squashed image, of which the lesson validates.
    squashed = server.feed("val", recipe="torchvision-v1", size=176, crop="squash").next_batch()
    assert (first.x.numpy() != squashed.x.numpy()).any()


def test_mixup_and_cutmix_are_mixed_within_a_batch(daemon: Daemon) -> None:
    server = daemon.connect()
    options: dict[str, Any] = {"recipe": "torchvision-v1", "batch_size": 64, "size": 64, "seed": 7, "dtype": "u8"}
    feed, plain = server.feed("train", mixup=0.4, cutmix=1.0, **options), server.feed("train", **options)
    mixed, own = feed.next_batch(), plain.next_batch()
    assert feed.is_mixed and not plain.is_mixed
    assert mixed.sample_id.tolist() == own.sample_id.tolist() and mixed.crop.tolist() == own.crop.tolist()
    cut, lam, partner = mixed.cut.numpy(), mixed.lam.numpy(), mixed.partner.numpy()
    boxes = cut[:, 2] * cut[:, 3] > 0
    assert 10 < boxes.sum() < 54
    assert numpy.allclose(lam[boxes], 1 - cut[boxes, 2] * cut[boxes, 3] / 64**2, atol=1e-6)
    assert len(set(lam[~boxes].tolist())) > 8
    pixels, sources = mixed.x.numpy(), own.x.numpy()
    for row in range(64):
        expected = sources[row].copy()
        if boxes[row]:
            top, left, height, width = cut[row]
            box = numpy.s_[:, top : top + height, left : left + width]
            expected[box] = sources[partner[row]][box]
            assert (pixels[row] == expected).all(), row
        else:
            blend = lam[row] * sources[row].astype(float) + (1 - lam[row]) * sources[partner[row]]
            assert numpy.abs(pixels[row] - blend).max() <= 0.51, row


def test_feeds_without_a_recipe_take_the_daemons() -> None:
    with mixd.serve(SAMPLE_DATA, recipe="torchvision-v1") as server:
        assert part(server.feed("train")) == TORCHVISION
        assert part(server.feed("val")) == TORCHVISION_VAL
        feed = server.feed("train", size=32, cutmix=1.0)
        assert (feed.spec["mix"]["mixup"], feed.spec["mix"]["cutmix"]) == ("none", 1.0)
        assert len({tuple(crop) for crop in feed.next_batch().crop.tolist()}) > 1
        assert server.feed("train", recipe="lesson").spec["crop"] == {"kind": "squash"}


def test_repeats_keep_the_length_of_an_epoch(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", recipe="torchvision-v1", size=32, batch_size=20, repeats=3)
    batches = [(batch.sample_id.tolist(), batch.crop.tolist()) for batch in feed]
    samples = [sample for ids, _ in batches for sample in ids]
    assert (len(feed), len(samples), len(set(samples))) == (10, 200, 67)
    # Three views of each sample in a row, each with a crop of its own.
    assert samples[0] == samples[1] == samples[2] != samples[3]
    assert len({tuple(crop) for crop in batches[0][1][:3]}) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"recipe": "torchvision"},
            r"`torchvision` is not a recipe \(use lesson, .*torchvision-v2, .*dino-local or simclr, or a file that ends in .toml",
        ),
        ({"recipe": "/no/such.toml"}, r"cannot read the recipe /no/such.toml"),
        ({"crop": "centre:9"}, r"`centre:9` is not a crop \(use squash, .*random_resized_crop:0.35,1"),
        ({"crop": "random_resized_crop:0,1"}, r"crop is random_resized_crop:0,1.*: it must be a crop whose share of the area"),
        ({"recipe": mixd.Recipe(val=mixd.ValView(crop=mixd.Crop("short_center")))}, "recipe: missing field `resize`"),
        ({"recipe": mixd.Recipe(train=mixd.TrainView(mix=mixd.Mix(mixup=-1)))}, "mixup is -1: it must be positive"),
        ({"interpolation": "lanczos"}, "interpolation is .*lanczos.*bilinear.*bicubic"),
        ({"flip": 1.5}, "flip is 1.5: it must be a probability"),
        ({"flip": float("nan")}, "flip is nan: it must be finite"),
        ({"repeats": 0}, "repeats is 0: it must be 1 to 64"),
        ({"mix_prob": 2}, "mix_prob is 2: it must be a probability"),
        ({"mix_switch": -1}, "mix_switch is -1: it must be a probability"),
        ({"lam": "per-row"}, "lam is .*per-row.*per-batch"),
        ({"pairing": "rolled"}, "pairing is .*rolled.*roll"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_remedy(daemon: Daemon, options: dict[str, Any], text: str) -> None:
    with pytest.raises(mixd.SpecError, match=text) as refused:
        daemon.connect().feed("train", **options)
    assert isinstance(refused.value, ValueError) and isinstance(refused.value, mixd.MixdError)


def test_a_file_that_holds_no_recipe_is_named(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(mixd_output("recipe", "lesson").replace("repeats", "repeat"))
    with pytest.raises(mixd.SpecError, match=r"mine.toml is not a recipe: .*repeat.*mixd recipe torchvision-v1"):
        daemon.connect().feed("train", recipe=path)
    with pytest.raises(subprocess.CalledProcessError):
        mixd_output("recipe", path)


def test_numbers_of_numpy_are_numbers(daemon: Daemon) -> None:
    spec = daemon.connect().feed("train", batch_size=numpy.int64(8), flip=numpy.float32(0.5), mean=numpy.array([0.5, 0.5, 0.5])).spec  # type: ignore[arg-type]
    assert (spec["batch_size"], spec["flip"], spec["mean"]) == (8, 0.5, [0.5] * 3)


def test_exceptions_keep_their_old_names() -> None:
    assert issubclass(mixd.SpecError, ValueError)
    pairs = [("NoDaemon", "NoDaemonError"), ("SpecRefused", "SpecError"), ("DaemonGone", "DaemonGoneError"), ("Evicted", "EvictedError"),
             ("FeedEnded", "FeedEndedError")]  # fmt: skip
    for old, new in pairs:
        assert getattr(mixd, old) is getattr(mixd, new) and issubclass(getattr(mixd, new), mixd.MixdError)
