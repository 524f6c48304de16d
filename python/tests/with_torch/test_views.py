"""Views beside those of torchvision's transforms, over Pillow's pixels."""

import json
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from ..conftest import SAMPLE_DATA, Daemon, mixd_output

pytest.importorskip("torchvision")
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

SIZE = 176
OPTIONS: dict[str, Any] = {"recipe": "torchvision-v1", "size": SIZE, "dtype": "u8", "layout": "nhwc"}


@pytest.fixture(autouse=True)
def horizontal_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has Pillow resize horizontally first, as mixd does and Pillow did up to 11.3."""
    resize = Image.Image.resize

    def in_two_passes(image: Image.Image, size: tuple[int, int], resample: Any) -> Image.Image:
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", in_two_passes)
    yield


def assert_same(daemon: Daemon, own: numpy.ndarray[Any, Any], view: Image.Image, what: object) -> None:
    """Equal where libjpeg-turbo decodes; close with the built-in decoder, whose pixels are not Pillow's."""
    exact = json.loads(mixd_output("status", "--socket", daemon.socket, "--json"))["jpeg_decoder"] == "libjpeg-turbo"
    mean, largest = (0, 0) if exact else (0.5, 6)
    error = numpy.abs(own.astype(int) - numpy.asarray(view))
    assert error.mean() <= mean and error.max() <= largest, what


def images(split: str) -> list[Image.Image]:
    """The samples, in the order of class folders, then of names."""
    return [Image.open(path).convert("RGB") for path in sorted((SAMPLE_DATA / split).glob("*/*"))]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_random_views_are_the_resized_crops_of_torchvision(daemon: Daemon, interpolation: Any) -> None:
    batch = daemon.connect().feed("train", batch_size=64, interpolation=interpolation, seed=4, **OPTIONS).next_batch()
    sources = images("train")
    rows = zip(batch.x.numpy(), batch.sample_id.tolist(), batch.crop.tolist(), batch.flip.tolist(), strict=True)
    for own, sample, box, flipped in rows:
        view = functional.resized_crop(sources[sample], *box, [SIZE, SIZE], transforms.InterpolationMode(interpolation))
        assert_same(daemon, own, functional.hflip(view) if flipped else view, (sample, box))


def test_validation_views_are_the_centre_crops_of_torchvision(daemon: Daemon) -> None:
    batch = daemon.connect().feed("val", **OPTIONS).next_batch()
    center = transforms.Compose([transforms.Resize(round(SIZE * 256 / 224)), transforms.CenterCrop(SIZE)])
    for sample, (own, source) in enumerate(zip(batch.x.numpy(), images("val"), strict=True)):
        assert_same(daemon, own, center(source), sample)
