"""Recipes that are made of torchvision's and timm's transforms."""

import collections
import inspect
import json
import math
import random
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mixd
import numpy
import pytest
import torch
import torchvision
from mixd.transforms import from_torchvision
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import functional, v2
from torchvision.transforms._presets import ImageClassification

from ..conftest import SAMPLE_DATA, Daemon, mixd_output
from .test_views import assert_same, horizontal_first, images  # noqa: F401

timm: Any = pytest.importorskip("timm")
create_transform = timm.data.create_transform
BICUBIC, NEAREST = v1.InterpolationMode.BICUBIC, v1.InterpolationMode.NEAREST
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = v1.Normalize(MEAN, STD)
RRC = mixd.Crop.random_resized()


def train(*elements: Any) -> mixd.TrainView:
    """The training view of a chain that begins with a random resized crop."""
    return from_torchvision(v1.Compose([v1.RandomResizedCrop(224), *elements]), train=True).train


def preset(name: str) -> dict[str, Any]:
    """A preset as `mixd recipe` prints it."""
    return tomllib.loads(mixd_output("recipe", name))


def assert_views(recipe: mixd.Recipe, name: str, view: str) -> None:
    """That a view, mean and std are a preset's, but for repeats and the mix."""
    own, expected = recipe.to_dict(), preset(name)
    for key in ("repeats", "mix"):
        own[view].pop(key, None), expected[view].pop(key, None)
    assert (own["mean"], own["std"]) == (expected["mean"], expected["std"])
    assert own[view] == json_like(expected[view])


def json_like(value: Any) -> Any:
    """Lists as the tuples of a recipe, numbers but for the last digits."""
    if isinstance(value, dict):
        return {key: json_like(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(map(json_like, value))
    return pytest.approx(value, rel=1e-12) if isinstance(value, float) else value


class ClassificationPresetTrain:
    """As torchvision's references/classification/presets.py (0.26) builds it for PIL images."""

    def __init__(
        self, *, crop_size: int, interpolation: Any = v1.InterpolationMode.BILINEAR, hflip_prob: float = 0.5,
        auto_augment_policy: str | None = None, ra_magnitude: int = 9, random_erase_prob: float = 0.0,
    ) -> None:  # fmt: skip
        trans: list[Any] = [v1.RandomResizedCrop(crop_size, interpolation=interpolation, antialias=True)]
        if hflip_prob > 0:
            trans.append(v1.RandomHorizontalFlip(hflip_prob))
        if auto_augment_policy == "ra":
            trans.append(v1.RandAugment(interpolation=interpolation, magnitude=ra_magnitude))
        elif auto_augment_policy == "ta_wide":
            trans.append(v1.TrivialAugmentWide(interpolation=interpolation))
        elif auto_augment_policy == "imagenet":
            trans.append(v1.AutoAugment(policy=v1.AutoAugmentPolicy.IMAGENET, interpolation=interpolation))
        trans += [v1.PILToTensor(), v1.ConvertImageDtype(torch.float), NORMALIZE]
        if random_erase_prob > 0:
            trans.append(v1.RandomErasing(p=random_erase_prob))
        self.transforms = v1.Compose(trans)

    def __call__(self, image: Image.Image) -> Any:
        return self.transforms(image)


class ClassificationPresetEval:
    """The same file's, as a module."""

    def __init__(self, *, crop_size: int, resize_size: int = 256) -> None:
        resize = v2.Resize(resize_size, interpolation=v1.InterpolationMode.BILINEAR, antialias=True)
        self.transforms = v2.Compose(
            [resize, v2.CenterCrop(crop_size), v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
        )


# What the presets of torchvision and timm become.


def test_each_preset_of_torchvisions_weights_is_converted_or_refused_by_name() -> None:
    converted, refused = 0, collections.Counter[str]()
    for model in torchvision.models.list_models():
        for weights in torchvision.models.get_model_weights(model):
            transform = weights.transforms()
            if not isinstance(transform, ImageClassification):
                kind = type(transform).__name__
                with pytest.raises(mixd.SpecError, match=rf"^{kind}(\(.*\))?: mixd has no such stage"):
                    from_torchvision(transform)
                refused[kind] += 1
                continue
            recipe, [crop], [resize] = from_torchvision(transform), transform.crop_size, transform.resize_size
            assert recipe.val == mixd.ValView(crop, mixd.Crop.short_center(resize), transform.interpolation.value), weights
            assert (recipe.mean, recipe.std) == (tuple(transform.mean), tuple(transform.std))
            assert recipe.train == mixd.TrainView(crop, interpolation=transform.interpolation.value)
            converted += 1
    assert converted > 110 and set(refused) == {"ObjectDetection", "SemanticSegmentation", "VideoClassification", "OpticalFlow"}


def test_each_evaluation_transform_of_timm_is_converted_or_refused_by_name() -> None:
    converted, refused, seen = 0, collections.Counter[str](), set()
    for name in timm.list_pretrained():
        config = timm.data.resolve_data_config({}, pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
        transform = create_transform(**config)
        try:
            recipe = from_torchvision(transform)
        except mixd.SpecError as error:
            assert config["crop_mode"] == "border" and str(error).startswith("ResizeKeepRatio: "), (name, error)
            refused[name] += 1
            continue
        converted += 1
        _, height, width = config["input_size"]
        side, square = math.floor(height / config["crop_pct"]), height == width
        crop = mixd.Crop.short_center(side) if config["crop_mode"] == "center" else mixd.Crop.squash_center(side)
        if config["crop_mode"] == "squash" and side == height:
            crop = mixd.Crop()
        assert recipe.val == mixd.ValView(height if square else (height, width), crop, config["interpolation"]), name
        assert [numpy.float32(value) for value in (*recipe.mean, *recipe.std)] == [
            numpy.float32(v) for v in (*config["mean"], *config["std"])
        ]
        seen.add((config["interpolation"], crop.kind, square))
    assert converted > 1700 and sum(refused.values()) < 20, refused
    assert len(seen) >= 5, seen


def test_torchvisions_references_are_its_presets() -> None:
    first = from_torchvision(ClassificationPresetTrain(crop_size=224))
    assert_views(first, "torchvision-v1", "train")
    assert_views(from_torchvision(ClassificationPresetEval(crop_size=224)), "torchvision-v1", "val")
    # Its validation views by default, too.
    assert_views(first, "torchvision-v1", "val")
    second = from_torchvision(ClassificationPresetTrain(crop_size=176, auto_augment_policy="ta_wide", random_erase_prob=0.1), name="mine")
    assert_views(second, "torchvision-v2", "train")
    assert_views(from_torchvision(ClassificationPresetEval(crop_size=224, resize_size=232)), "torchvision-v2", "val")
    assert second.name == "mine" and second.about.startswith(
        "from RandomResizedCrop, RandomHorizontalFlip, TrivialAugmentWide, PILToTensor"
    )
    rand = from_torchvision(ClassificationPresetTrain(crop_size=224, auto_augment_policy="ra", ra_magnitude=7, hflip_prob=0.0)).train
    assert (rand.augment, rand.flip) == (mixd.Augment("rand-augment:2,7", warping=mixd.Warping("bilinear")), 0.0)
    auto = from_torchvision(ClassificationPresetTrain(crop_size=224, auto_augment_policy="imagenet", interpolation=BICUBIC)).train
    assert (auto.augment, auto.interpolation) == (mixd.Augment("auto-augment", warping=mixd.Warping("bicubic")), "bicubic")


# How DeiT's, ConvNeXt's and Swin's scripts and those of timm's ResNets call `create_transform`.
SCRIPTS: dict[str, dict[str, Any]] = {
    "deit": {"color_jitter": 0.3, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1},
    "convnext": {"color_jitter": 0.4, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1},
    "swin": {"color_jitter": 0.4, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1},
    "a1": {"auto_augment": "rand-m7-mstd0.5-inc1"},
    "a2": {"auto_augment": "rand-m7-mstd0.5-inc1"},
    "a3": {"input_size": (3, 160, 160), "auto_augment": "rand-m6-mstd0.5-inc1"},
    # DeiT III's own code is none of timm's; timm calls its policy 3a.
    "deit3": {"color_jitter": 0.3, "auto_augment": "3a"},
}
PERCENT = {"deit": 224 / 256, "convnext": 224 / 256, "swin": 224 / 256, "a1": 0.95, "a2": 0.95, "a3": 0.95, "deit3": 1.0}


@pytest.mark.parametrize("name", SCRIPTS)
def test_timms_training_transforms_are_the_presets_of_their_scripts(name: str) -> None:
    options = {"input_size": 224, "interpolation": "bicubic"} | SCRIPTS[name]
    recipe = from_torchvision(create_transform(is_training=True, **options))
    assert_views(recipe, name, "train")
    assert_views(from_torchvision(create_transform(224, interpolation="bicubic", crop_pct=PERCENT[name])), name, "val")
    # In three parts, for batches that are partly clean.
    assert from_torchvision(create_transform(is_training=True, separate=True, **options)) == recipe
    assert recipe.val.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-n2-p0.5-inc1"),
        ("rand", "rand-m10-mstd0-n2-p0.5-inc0"),
        ("rand-m3-n4-p0.25-mstd1.5", "rand-m3-mstd1.5-n4-p0.25-inc0"),
        ("rand-m5-mmax10-inc1", "rand-m5-mstd0-n2-p0.5-inc1"),
        ("3a", "3-augment"),
    ],
)
def test_timms_policies_are_recovered_from_their_operations(text: str, policy: str) -> None:
    augment = from_torchvision(
        create_transform(64, is_training=True, auto_augment=text, interpolation="bilinear", mean=(0.5, 0.2, 1))
    ).train.augment
    expected = mixd.Warping() if text == "3a" else mixd.Warping("bilinear", (128, 51, 255))
    assert (augment.policy, augment.warping) == (policy, expected)
    # The program reads them.
    assert mixd_output("plan", "--data", SAMPLE_DATA, "--policy", policy, "--epoch", 0, "--json")


def test_timms_erased_boxes_are_those_of_its_options() -> None:
    for mode, count in (("const", 1), ("rand", 2), ("pixel", 8)):
        transform = create_transform(64, is_training=True, interpolation="bilinear", re_prob=0.3, re_mode=mode, re_count=count)
        expected = mixd.Erase(0.3, mode, count, area=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3))  # type: ignore[arg-type]
        assert from_torchvision(transform).train.erase == expected


# What elements become.


@pytest.mark.parametrize("package", [v1, v2])
def test_crops_are_those_of_their_arguments(package: Any) -> None:
    def of(*elements: Any) -> tuple[Any, mixd.Crop]:
        view = from_torchvision(package.Compose([*elements]), train=True).train
        return view.size, view.crop

    resize, center, window = package.Resize, package.CenterCrop, package.RandomCrop
    assert of(resize(256), center(224)) == of(resize([256]), center([224])) == (224, mixd.Crop.short_center(256))
    assert of(resize(50), center((40, 60))) == ((40, 60), mixd.Crop.short_center(50))
    assert of(resize((152, 152)), center(128)) == (128, mixd.Crop.squash_center(152))
    assert of(resize((96, 128))) == of(resize((96, 128)), center((96, 128))) == ((96, 128), mixd.Crop())
    assert of(resize((64, 64)), center(64)) == (64, mixd.Crop())
    crop = package.RandomResizedCrop((96, 64), scale=(0.35, 1), ratio=(0.5, 2.0), interpolation=BICUBIC)
    assert of(crop) == ((96, 64), mixd.Crop.random_resized((0.35, 1.0), (0.5, 2.0)))
    assert of(window(32)) == (32, mixd.Crop.padded(0))
    assert of(window(32, padding=4)) == of(window(32, padding=(4, 4, 4, 4), fill=0)) == (32, mixd.Crop.padded(4))
    assert of(window((32, 40), padding=[4, 4], padding_mode="reflect", fill=9)) == ((32, 40), mixd.Crop.padded(4, "reflect"))


@pytest.mark.parametrize("package", [v1, v2])
def test_colors_and_boxes_are_those_of_their_arguments(package: Any) -> None:
    jitter = package.ColorJitter(0.4, (0.7, 1.3), 2.0, 0.1)
    expected = mixd.ColorJitter(0.4, 0.3, 2.0, 0.1)
    colors = train(jitter, package.RandomGrayscale(0.2), package.RandomSolarize(128, 0.1)).augment
    assert colors == mixd.Augment(jitter=expected, grayscale=0.2, solarize=mixd.Solarize(0.1, 128))
    by_chance = train(package.RandomApply([package.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)).augment.jitter
    assert by_chance == mixd.ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8)
    policies = {
        package.RandAugment(3, 11, fill=7): mixd.Augment("rand-augment:3,11", warping=mixd.Warping("nearest", (7, 7, 7))),
        package.RandAugment(fill=[1.0, 2.0, 3.0], interpolation=BICUBIC): mixd.Augment(
            "rand-augment:2,9", warping=mixd.Warping("bicubic", (1, 2, 3))
        ),
        package.TrivialAugmentWide(): mixd.Augment("trivial-augment-wide"),
        package.AutoAugment(): mixd.Augment("auto-augment"),
    }
    for transform, augment in policies.items():
        assert train(transform).augment == augment
    for value, mode in ((0, "const"), ((0, 0, 0), "const"), ("random", "pixel")):
        boxes = train(v1.ToTensor(), NORMALIZE, package.RandomErasing(0.3, (0.1, 0.2), (0.5, 2), value, inplace=True)).erase
        assert boxes == mixd.Erase(0.3, mode, area=(0.1, 0.2), ratio=(0.5, 2.0))  # type: ignore[arg-type]


def test_values_are_normalized_by_the_chains_mean_and_std() -> None:
    resize: list[Any] = [v2.Resize((64, 64))]
    for chain in (
        v1.Compose([*resize, v1.ToTensor(), v1.Normalize([0.5], [0.25])]),
        v2.Compose([*resize, v2.ToImage(), v2.RGB(), v2.ToDtype(torch.uint8, scale=True), v2.ToDtype(torch.float32, scale=True), v2.Identity(),
                    v2.Normalize([0.5] * 3, [0.25] * 3, inplace=True), v2.ToPureTensor()]),
        nn.Sequential(*resize, v2.PILToTensor(), v2.ConvertImageDtype(torch.float32), nn.Sequential(v2.Normalize([0.5] * 3, [0.25] * 3)), nn.Identity()),
        [*resize, (v1.ToTensor(), v2.ToDtype(torch.float32), v1.Normalize(torch.tensor([0.5] * 3), torch.tensor([0.25] * 3)))],
    ):  # fmt: skip
        recipe = from_torchvision(chain)
        assert (recipe.mean, recipe.std, recipe.val.crop) == ((0.5,) * 3, (0.25,) * 3, mixd.Crop()), chain
    recipe = from_torchvision(v1.Compose([*resize, v1.ToTensor()]))
    assert (recipe.mean, recipe.std) == ((0.0,) * 3, (1.0,) * 3)
    # CLIP's: timm keeps float32, of which mixd takes the shortest form.
    clip = (0.48145466, 0.4578275, 0.40821073)
    found = from_torchvision(create_transform(64, mean=clip, std=clip)).mean
    assert list(map(numpy.float32, found)) == list(map(numpy.float32, clip)) and max(len(str(value)) for value in found) <= 10


def test_the_view_that_a_transform_does_not_give_is_a_default() -> None:
    recipe = from_torchvision([v1.RandomResizedCrop(160, interpolation=BICUBIC), v1.RandomHorizontalFlip(0.3)])
    assert recipe.val == mixd.ValView(160, mixd.Crop.short_center(183), "bicubic")
    assert from_torchvision([v1.RandomCrop((32, 40), 4)]).val == mixd.ValView((32, 40), mixd.Crop.short_center(32))
    squash: list[Any] = [v1.Resize((96, 128))]
    assert (
        from_torchvision([*squash, v1.RandomHorizontalFlip()]).val == from_torchvision(squash).val == mixd.ValView((96, 128), mixd.Crop())
    )
    assert from_torchvision(squash).train == mixd.TrainView((96, 128), RRC, "bilinear", 0.5)
    assert from_torchvision(squash, train=True).train == mixd.TrainView((96, 128), mixd.Crop(), "bilinear", 0.0)


def test_order_matters_but_where_no_value_depends_on_it() -> None:
    flip, jitter, window = v1.RandomHorizontalFlip(0.3), v1.ColorJitter(0.4), v1.RandomCrop(32, 4)
    assert from_torchvision([flip, window]).train == from_torchvision([window, flip]).train
    colors: list[Any] = [jitter, v1.RandomGrayscale(), v1.RandomSolarize(128)]
    assert train(*colors, flip, v1.ToTensor()) == train(flip, *colors, v1.ToTensor())
    assert train(v1.ToTensor(), NORMALIZE, flip) == train(flip)
    # Such colors are of single pixels and of the mean; a warp is not.
    changes: list[Any] = [
        lambda x: functional.adjust_brightness(x, 1.3), lambda x: functional.adjust_contrast(x, 0.7), lambda x: functional.adjust_saturation(x, 1.4),
        lambda x: functional.adjust_hue(x, 0.1), lambda x: functional.rgb_to_grayscale(x, 3), lambda x: functional.solarize(x, 128),
    ]  # fmt: skip
    for source in images("val")[::10]:
        for change in changes:
            assert functional.hflip(change(source)) == change(functional.hflip(source))
        assert functional.hflip(functional.rotate(source, 9)) != functional.rotate(functional.hflip(source), 9)
    # Tensors have no rounding of their own where nothing is resampled.
    assert from_torchvision([v1.ToTensor(), window, flip]).train == from_torchvision([window, flip, v1.ToTensor()]).train
    tensors = from_torchvision(
        v2.Compose([v2.ToImage(), v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])
    )
    assert tensors.train == from_torchvision([v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor()]).train


# What is refused.


class Grayer(v1.RandomGrayscale):  # type: ignore[misc]
    """A subclass, which may do anything."""


class Wrapped:
    """A transform with more than a chain."""

    def __init__(self) -> None:
        self.transforms, self.copies = v1.Compose([v1.Resize((8, 8))]), 2


def changed(transform: Any, **values: Any) -> Any:
    """A transform with other attributes."""
    for name, value in values.items():
        setattr(transform, name, value)
    return transform


def timm_train(**options: Any) -> Any:
    """A training transform of timm's."""
    return create_transform(64, is_training=True, **{"interpolation": "bilinear", **options})


def rand(text: str, **hparams: Any) -> Any:
    """A chain with timm's RandAugment."""
    hparams = {"img_mean": (1, 2, 3), "interpolation": 2} | hparams
    return [v1.RandomResizedCrop(64), timm.data.auto_augment.rand_augment_transform(text, hparams)]


CROP = v1.RandomResizedCrop(64)
ANY_SIZE = "views have no fixed size"
REFUSED: list[tuple[Any, str]] = [
    # Crops.
    ([v1.Resize(256)], rf"^Resize: {ANY_SIZE} \(put CenterCrop"),
    ([v1.ToTensor()], ANY_SIZE),
    ([], f"^the transform: {ANY_SIZE}"),
    ([v1.Resize(256, max_size=300), v1.CenterCrop(224)], r"^Resize\(size=256.*max_size"),
    ([v1.CenterCrop(224)], r"^CenterCrop\(size=\(224, 224\)\): mixd has no centre crop without a resize \(put Resize"),
    ([v1.Resize((60, 90)), v1.CenterCrop(50)], r"^CenterCrop.*follows Resize.*squares"),
    ([v1.Resize(256), v1.RandomCrop(224)], r"^RandomCrop.*follows Resize.*--source"),
    ([v1.Resize((256, 256)), CROP], r"^RandomResizedCrop.*follows Resize.*\(leave the resize out; --source"),
    ([CROP, v1.CenterCrop(32)], r"^CenterCrop.*there is RandomResizedCrop\(.*\) already"),
    ([CROP, v1.Resize((8, 8))], r"^Resize.*follows RandomResizedCrop.*mixd's order is resize, crop, flip"),
    ([v1.Resize(9, interpolation=NEAREST), v1.CenterCrop(8)], "^Resize.*interpolation is nearest .use interpolation=bilinear or bicubic"),
    ([v1.Resize(9, interpolation=v1.InterpolationMode.LANCZOS), v1.CenterCrop(8)], "^Resize.*interpolation is lanczos"),
    ([v1.RandomResizedCrop(64, scale=(0, 1))], r"^RandomResizedCrop.*its scale is \(0, 1\) \(use bounds with 0 < least"),
    ([v1.RandomResizedCrop(64, scale=(0.5, 1.5))], r"^RandomResizedCrop.*its scale is \(0.5, 1.5\)"),
    ([v1.RandomCrop(32, padding=4, padding_mode="edge")], "^RandomCrop.*pads with edge"),
    ([v1.RandomCrop(32, padding=4, fill=128)], "^RandomCrop.*pads with constant and fill 128 .use reflect, or constant with fill=0"),
    ([v2.RandomCrop(32, padding=4, fill={Image.Image: 3})], "^RandomCrop.*its fill is"),
    ([v1.RandomCrop(32, padding=(4, 2))], r"^RandomCrop.*its padding is \(4, 2\)"),
    ([v1.RandomCrop(32, pad_if_needed=True)], "^RandomCrop.*pad_if_needed=False"),
    (v2.RandomOrder([v2.Resize((8, 8))]), "^RandomOrder.*mixd has no such stage"),
    # Colors.
    (
        [CROP, v1.RandomVerticalFlip()],
        r"^RandomVerticalFlip\(p=0.5\): mixd has no such stage \(leave it out, or apply it to batches with Recipe.then",
    ),
    ([CROP, v1.Lambda(lambda x: x)], "^Lambda.*cannot look into a function"),
    ([CROP, v1.GaussianBlur(23)], r"^GaussianBlur.*Pillow's ImageFilter.GaussianBlur \(leave it out, and set augment=mixd.Augment"),
    ([CROP, v1.RandomApply([v1.GaussianBlur(23)])], r"^GaussianBlur\(kernel"),
    ([CROP, v2.RandomApply([v2.ColorJitter(0.1), v2.RandomGrayscale()])], "^RandomApply.*one ColorJitter by chance"),
    ([CROP, v1.RandomChoice([v1.ColorJitter(0.1)])], "^RandomChoice"),
    ([CROP, v1.ColorJitter((0.5, 2.0))], "^ColorJitter.*its brightness of 0.5 to 2.0 is not even about 1 .give brightness one number"),
    ([CROP, v1.ColorJitter(hue=(0.0, 0.1))], "^ColorJitter.*its hue of"),
    ([CROP, v1.ColorJitter(0.1), v1.ColorJitter(0.2)], "^ColorJitter.*there is ColorJitter.*already"),
    ([CROP, v1.AugMix()], "^AugMix.*no such stage"),
    ([CROP, Grayer()], "^Grayer.*no such stage"),
    ([CROP, v1.RandAugment(num_magnitude_bins=11)], "^RandAugment.*num_magnitude_bins=11.*31 bins"),
    ([CROP, v1.RandAugment(num_ops=9)], "^RandAugment.*1 to 8 operations"),
    ([CROP, v2.RandAugment(magnitude=-1)], "^RandAugment.*magnitudes 0 to 30"),
    ([CROP, v1.TrivialAugmentWide(num_magnitude_bins=30)], "^TrivialAugmentWide.*31 bins"),
    ([CROP, v1.AutoAugment(v1.AutoAugmentPolicy.CIFAR10)], "^AutoAugment.*use AutoAugmentPolicy.IMAGENET"),
    ([CROP, v1.RandAugment(fill=[1.0, 2.0])], "^RandAugment.*its fill is"),
    ([CROP, v1.RandAugment(fill=300)], "^RandAugment.*its fill is 300"),
    ([CROP, v1.TrivialAugmentWide(interpolation=v1.InterpolationMode.BOX)], "^TrivialAugmentWide.*interpolation is box"),
    ([CROP, v1.RandomSolarize(300)], "^RandomSolarize.*its threshold is 300"),
    # The order.
    (
        [v1.RandomHorizontalFlip(), CROP],
        r"^RandomResizedCrop.*follows RandomHorizontalFlip\(p=0.5\).*\(put it before RandomHorizontalFlip\(p=0.5\)\)",
    ),
    ([v1.Resize(9), v1.RandomHorizontalFlip(), v1.CenterCrop(8)], "^CenterCrop.*follows RandomHorizontalFlip"),
    ([CROP, v1.RandAugment(), v1.RandomHorizontalFlip()], "^RandomHorizontalFlip.*follows RandAugment"),
    ([CROP, v1.ColorJitter(0.1), v1.TrivialAugmentWide()], "^TrivialAugmentWide.*follows ColorJitter"),
    ([CROP, v1.RandomGrayscale(), v1.ColorJitter(0.1)], "^ColorJitter.*follows RandomGrayscale"),
    ([v1.ColorJitter(0.1), v1.RandomCrop(32)], "^RandomCrop.*follows ColorJitter"),
    ([CROP, v1.ToTensor(), v1.RandomErasing(), NORMALIZE], "^Normalize.*follows RandomErasing"),
    ([CROP, v1.ToTensor(), v1.RandomErasing(), v1.RandomHorizontalFlip()], "^RandomHorizontalFlip.*follows RandomErasing"),
    # Tensors, and the way to them.
    (
        [v1.ToTensor(), v1.Resize(9, antialias=False), v1.CenterCrop(8)],
        r"^Resize.*after ToTensor\(\) only bilinear with antialias is as for PIL images",
    ),
    ([v2.ToImage(), v2.RandomResizedCrop(8, antialias=None)], r"^RandomResizedCrop.*\(put ToImage\(\) after it"),
    ([v2.ToImage(), v2.RandomResizedCrop(8, interpolation=BICUBIC)], "^RandomResizedCrop.*only bilinear with antialias"),
    (
        [v2.ToImage(), v2.RandomResizedCrop(8), v2.TrivialAugmentWide()],
        r"^TrivialAugmentWide.*after ToImage\(\) torchvision computes it otherwise",
    ),
    ([CROP, v1.ToTensor(), v1.ColorJitter(0.1)], r"^ColorJitter.*\(put ToTensor\(\) after it\)"),
    ([CROP, v2.ToImage(), v2.ToDtype(torch.float32)], "^ToDtype.*use torch.float32 and scale=True"),
    ([CROP, v2.ToImage(), v2.ToDtype(torch.float16, scale=True)], "^ToDtype.*a feed's dtype may be f16"),
    ([CROP, v2.ToDtype(torch.float32, scale=True)], r"^ToDtype.*put ToImage\(\) before it"),
    ([CROP, v2.ToImage(), timm.data.transforms.MaybeToTensor()], r"^MaybeToTensor.*after ToImage\(\) it leaves values of 0 to 255"),
    ([CROP, v1.PILToTensor(), NORMALIZE], r"^Normalize.*needs values in \[0, 1\] \(put ToTensor"),
    ([CROP, v1.PILToTensor(), v1.RandomErasing()], "^RandomErasing.*floats"),
    ([CROP, v1.ToTensor(), v1.Normalize([0.1, 0.2], [1, 1])], "^Normalize.*its mean is"),
    ([CROP, v1.ToTensor(), v1.Normalize(MEAN, [0.0] * 3)], "^Normalize.*its std is"),
    ([CROP, v1.ToTensor(), v1.Normalize([math.nan] * 3, STD)], "^Normalize.*its mean is"),
    ([CROP, v1.ToTensor(), v1.RandomErasing(value=0.5)], '^RandomErasing.*its value is 0.5 .use 0 or "random"'),
    ([CROP, v1.ToTensor(), v2.RandomErasing(value=(1, 2, 3))], "^RandomErasing.*its value is"),
    ([CROP, v1.ToTensor(), v1.RandomErasing(scale=(0, 0.3))], "^RandomErasing.*its scale is"),
    # timm's.
    (timm_train(interpolation="random"), '^RandomResizedCropAndInterpolation.*train_interpolation="bicubic"'),
    (timm_train(interpolation="lanczos"), "^RandomResizedCropAndInterpolation.*interpolation is lanczos"),
    (timm_train(train_crop_mode="rkrc"), "^ResizeKeepRatio.*train_crop_mode rrc"),
    (timm_train(train_crop_mode="rkrr"), "^ResizeKeepRatio"),
    (timm_train(vflip=0.5), "^RandomVerticalFlip"),
    (timm_train(gaussian_blur_prob=0.5), "^GaussianBlur"),
    (
        timm_train(use_prefetcher=True),
        r"^MaybePILToTensor\(\): mean and std are not in the chain \(use create_transform\(use_prefetcher=False",
    ),
    (timm_train(normalize=False), "^MaybePILToTensor"),
    (timm_train(auto_augment="augmix-m3"), "^AugMixAugment"),
    *(
        (timm_train(auto_augment=text), "^AutoAugment.*but 3a .use")
        for text in ("v0", "v0r", "original", "originalr-mstd0.5", "3a-mstd0.5")
    ),
    (timm_train(auto_augment="rand-m9-mstd101"), "^RandAugment: its magnitudes are uniform .use a finite mstd"),
    (timm_train(auto_augment="rand-m15"), "^RandAugment: it has 2 layers of magnitude 15 up to 10 .use -m0 to -m10"),
    (timm_train(auto_augment="rand-m5-mmax20"), "^RandAugment.*magnitude 5 up to 20"),
    (timm_train(auto_augment="rand-n9"), "^RandAugment: it has 9 layers"),
    (timm_train(auto_augment="rand-m9-tweights"), "^RandAugment: it does not draw from timm's fifteen operations alike"),
    (timm_train(auto_augment="rand-m9-t3a"), "^RandAugment.*leave -t out"),
    (rand("rand-m9", translate_pct=0.3), "^RandAugment: its hparams are.*translate_pct"),
    (rand("rand-m9", img_mean=128), "^RandAugment: its hparams are"),
    (rand("rand-m9", interpolation=(2, 3)), "^RandAugment: it draws an interpolation for each image"),
    (timm_train(patchify=True), "^Patchify"),
    (create_transform(64, crop_mode="border"), r"^ResizeKeepRatio: it rounds sides.*use crop_mode center"),
    (create_transform((64, 96)), "^ResizeKeepRatio"),
    (create_transform(64, crop_border_pixels=4), "^TrimBorder"),
    ([CROP, timm.data.transforms.ToTensor()], "^ToTensor: mixd has no such stage"),
    ([CROP, v1.ToTensor(), timm.data.random_erasing.RandomErasing(min_count=2, max_count=3)], "^RandomErasing.*it erases 2 to 3 boxes"),
    ([CROP, v1.ToTensor(), timm.data.random_erasing.RandomErasing(max_count=9)], "^RandomErasing.*it erases 1 to 9 boxes"),
    # What is no chain.
    (Wrapped(), "^Wrapped: mixd has no such stage"),
    (None, "^None: mixd has no such stage"),
    ([CROP, changed(v1.RandomErasing(), p=0.1)], "^RandomErasing"),
]


@pytest.mark.parametrize(("transform", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_no_recipe_says_is_refused_with_the_remedy(transform: Any, text: str) -> None:
    with pytest.raises(mixd.SpecError, match=text) as refused:
        from_torchvision(transform)
    assert str(refused.value).endswith(")")


def test_a_validation_view_has_no_random_stage() -> None:
    for element in (v1.RandomHorizontalFlip(), v1.RandAugment(), v1.ColorJitter(0.1)):
        with pytest.raises(mixd.SpecError, match=f"^{type(element).__name__}.*validation views have no random stage .*train=True"):
            from_torchvision([v1.Resize((8, 8)), element], train=False)
    with pytest.raises(mixd.SpecError, match=r"^RandomResizedCrop.*validation"):
        from_torchvision([CROP], train=False)


def test_nothing_is_imported_for_it() -> None:
    code = "import sys, mixd.transforms; assert not {'torch', 'torchvision', 'timm', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_class_that_is_recognized_exists() -> None:
    found = {f"torchvision.{name}" for package in (v1, v2) for name, one in vars(package).items() if inspect.isclass(one)}
    found |= {f"torch.{name}" for name in dir(nn)} | {"torchvision.ImageClassification"}
    modules = (timm.data.transforms, timm.data.auto_augment, timm.data.random_erasing)
    found |= {f"timm.{name}" for module in modules for name in dir(module)}
    assert {*mixd.transforms._HANDLERS, *mixd.transforms._REASONS} <= found


# What comes of it.


@pytest.mark.parametrize(
    "transform",
    [
        ImageClassification(crop_size=96, resize_size=110),
        ImageClassification(crop_size=96, resize_size=70, interpolation=BICUBIC),
        v1.Compose([v1.Resize((90, 90)), v1.CenterCrop((64, 80)), v1.ToTensor(), v1.Normalize([0.5], [0.25])]),
        v2.Compose([v2.Resize((60, 100), interpolation=BICUBIC), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        create_transform(112, crop_pct=0.9, interpolation="bicubic"),
        create_transform(64, crop_pct=0.8, crop_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
    ],
    ids=["weights", "padded", "squash_center", "squash", "timm", "timm squash"],
)
def test_validation_views_are_the_transforms_own(daemon: Daemon, transform: Any) -> None:
    recipe = from_torchvision(transform)
    server, options = daemon.connect(), dict[str, Any](recipe=recipe, batch_size=50)
    # The last resize or crop is the last step that changes pixels.
    if isinstance(transform, ImageClassification):
        steps: list[Any] = [
            v1.Resize(transform.resize_size, interpolation=transform.interpolation), v1.CenterCrop(transform.crop_size), v1.ToTensor(),
            v1.Normalize(transform.mean, transform.std),
        ]  # fmt: skip
    else:
        steps = transform.transforms
    pixels = [step for step in steps if isinstance(step, v1.Resize | v1.CenterCrop | v2.Resize | v2.CenterCrop)]
    values = v1.Compose([step for step in steps if step not in pixels])
    bytes_, floats = server.feed("val", dtype="u8", layout="nhwc", **options).next_batch(), server.feed("val", **options).next_batch()
    for sample, (own, normalized, source) in enumerate(zip(bytes_.x.numpy(), floats.x.numpy(), images("val"), strict=True)):
        assert_same(daemon, own, v1.Compose(pixels)(source), sample)
        assert numpy.abs(values(Image.fromarray(own)).numpy() - normalized).max() < 1e-6
        if isinstance(transform, ImageClassification):
            assert torch.equal(transform(source), v1.Compose(steps)(source))


# Names of operations in mixd's plans.
NAMES = {
    "AutoContrast": "autocontrast", "Color": "saturation", "ShearX": "shear_x", "ShearY": "shear_y", "SolarizeAdd": "solarize_add",
    "TranslateX": "translate_x", "TranslateY": "translate_y", "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
}  # fmt: skip
Draws = dict[str, list[float]]
SIDE, ROWS = 96, 12_000


def planned(recipe: mixd.Recipe, folder: Path) -> Draws:
    """The arguments of each operation that `mixd plan` draws; 0 of those without."""
    path = folder / "recipe.toml"
    path.write_text("\n".join(toml(recipe.to_dict())))
    drawn: Draws = collections.defaultdict(list)
    rows = 0
    for epoch in range(ROWS // 200):
        for line in mixd_output("plan", "--data", SAMPLE_DATA, "--recipe", path, "--epoch", epoch, "--seed", 3, "--json").splitlines():
            for row in json.loads(line)["recipe"]:
                rows += 1
                for name, *argument in row["ops"]:
                    drawn[name].append(float(argument[0]) if argument else 0.0)
    assert rows == ROWS
    return drawn


def toml(table: dict[str, Any], path: str = "") -> Iterator[str]:
    """Lines of a TOML file."""
    yield from (f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict))
    for key, value in table.items():
        if isinstance(value, dict):
            yield f"[{path}{key}]"
            yield from toml(value, f"{path}{key}.")


def drawn_by_torchvision(transform: Any, monkeypatch: pytest.MonkeyPatch) -> Draws:
    """The arguments of each operation that one of torchvision's policies draws."""
    drawn: Draws = collections.defaultdict(list)

    def record(image: Image.Image, name: str, magnitude: float, **_: Any) -> Image.Image:
        factor = name in ("Brightness", "Color", "Contrast", "Sharpness")
        pixels = name in ("TranslateX", "TranslateY")
        drawn[NAMES.get(name, name.lower())].append(1 + magnitude if factor else float(int(magnitude)) if pixels else magnitude)
        return image

    monkeypatch.setattr("torchvision.transforms.autoaugment._apply_op", record)
    torch.manual_seed(0)
    image = Image.new("RGB", (SIDE, SIDE))
    for _ in range(ROWS):
        transform(image)
    return drawn


def drawn_by_timm(transform: Any, _: pytest.MonkeyPatch) -> Draws:
    """The arguments of each operation that timm's RandAugment draws."""
    drawn: Draws = collections.defaultdict(list)

    def recorder(op: Any) -> Callable[..., Image.Image]:
        name = op.name.removesuffix("Increasing")
        share = SIDE if name.startswith("Translate") else 1

        def record(image: Image.Image, *arguments: float, **_: Any) -> Image.Image:
            drawn[NAMES.get(name, name.lower())].append(share * arguments[0] if arguments else 0.0)
            return image

        return record

    for op in transform.ops:
        op.aug_fn = recorder(op)
    random.seed(0)
    numpy.random.seed(0)
    image = Image.new("RGB", (SIDE, SIDE))
    for _row in range(ROWS):
        transform(image)
    return drawn


def differences(own: Draws, other: Draws) -> dict[str, float]:
    """How far apart two sets of draws are: for frequencies χ² beyond its mean in its standard deviations, for arguments Kolmogorov and Smirnov's."""
    assert own.keys() == other.keys()
    counts = numpy.array([[len(draws[name]) for name in own] for draws in (own, other)], float)
    # Both are of as many rows.
    chi = ((counts[0] - counts[1]) ** 2 / counts.sum(0)).sum()
    found = {"frequencies": (chi - len(own)) / math.sqrt(2 * len(own))}
    for name in own:
        one, two = (numpy.sort(numpy.round(draws[name], 3)) for draws in (own, other))
        points = numpy.concatenate([one, two])
        gap = numpy.abs(numpy.searchsorted(one, points, "right") / len(one) - numpy.searchsorted(two, points, "right") / len(two)).max()
        found[name] = gap * math.sqrt(len(one) * len(two) / (len(one) + len(two)))
    return found


# With a probability of 1e-5 and less a χ² is so far off, and with 1.3e-4 a difference of two distributions.
FREQUENCIES_MOST, GAP_MOST = 6.0, 2.2


@pytest.mark.parametrize(
    ("transform", "other", "draw"),
    [
        (v1.RandAugment(3, 11), v1.RandAugment(3, 12), drawn_by_torchvision),
        (v1.TrivialAugmentWide(), v1.RandAugment(1, 15), drawn_by_torchvision),
        (v1.AutoAugment(), None, drawn_by_torchvision),
        (rand("rand-m7-mstd0.5-n3-inc1")[1], rand("rand-m8-mstd0.5-n3-inc1")[1], drawn_by_timm),
        (rand("rand-m4-mstd2-p0.8")[1], rand("rand-m4-mstd1-p0.8")[1], drawn_by_timm),
    ],
    ids=["rand-augment", "trivial-augment-wide", "auto-augment", "timm increasing", "timm"],
)
def test_policies_are_drawn_as_torchvision_and_timm_draw_them(
    transform: Any, other: Any, draw: Callable[[Any, pytest.MonkeyPatch], Draws], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = planned(from_torchvision([v1.RandomResizedCrop(SIDE), transform]), tmp_path)
    found = differences(own, draw(transform, monkeypatch))
    assert found.pop("frequencies") < FREQUENCIES_MOST and max(found.values()) < GAP_MOST, found
    # Other magnitudes would be seen.
    if other is not None:
        found = differences(own, draw(other, monkeypatch))
        assert max(found.values()) > 2 * GAP_MOST, found


def test_tensors_are_resized_as_images_are_but_for_one_level() -> None:
    for source in images("val")[::5]:
        for size in (64, 300):
            of_image = numpy.asarray(functional.resize(source, [size, size])).astype(float)
            for resize in (functional.resize, v2.functional.resize):
                for tensor in (functional.pil_to_tensor(source), functional.to_tensor(source)):
                    scale = 255 if tensor.is_floating_point() else 1
                    of_tensor = resize(tensor, [size, size], antialias=True).permute(1, 2, 0).double().numpy() * scale
                    assert numpy.abs(of_tensor - of_image).max() <= 1.01


def test_a_daemon_takes_every_converted_recipe(daemon: Daemon) -> None:
    server = daemon.connect()
    chains: Sequence[Any] = [
        ClassificationPresetTrain(crop_size=32, auto_augment_policy="ra", random_erase_prob=0.1),
        timm_train(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel"),
        timm_train(auto_augment="3a", color_jitter=0.3),
        [
            v1.RandomCrop((32, 40), 4, padding_mode="reflect"),
            v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v1.RandomGrayscale(0.2),
        ],
    ]
    for chain in chains:
        recipe = from_torchvision(chain)
        for split in ("train", "val"):
            feed = server.feed(split, recipe=recipe, batch_size=8)
            height, width = recipe.train.size if isinstance(recipe.train.size, tuple) else (recipe.train.size, recipe.train.size)
            assert feed.next_batch().x.shape == (8, 3, height, width)
