"""Recipes: what a training recipe says of its images (`mixd recipe` lists the presets; docs/spec/recipes.md defines the stages)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

__all__ = [
    "Augment",
    "Blur",
    "ColorJitter",
    "Crop",
    "Erase",
    "Grow",
    "LaterViews",
    "Mix",
    "Recipe",
    "Solarize",
    "TrainView",
    "ValView",
    "Warping",
]

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Crop:
    """What part of an image a view shows.

    kind: "squash", "squash_center", "short_center", "random_resized_crop" or "pad_crop".
    resize: pixels of the side before a centre crop (`squash_center`, `short_center`).
    scale, ratio: least and largest share of the area and aspect ratio, width over height (`random_resized_crop`).
    pad, mode: pixels on each side, and "constant" or "reflect" (`pad_crop`).
    """

    kind: Literal["squash", "squash_center", "short_center", "random_resized_crop", "pad_crop"] = "squash"
    resize: int | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    pad: int | None = None
    mode: Literal["constant", "reflect"] | None = None

    @classmethod
    def random_resized(cls, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> "Crop":
        """Gives torchvision's RandomResizedCrop."""
        return cls("random_resized_crop", scale=scale, ratio=ratio)

    @classmethod
    def short_center(cls, resize: int) -> "Crop":
        """Gives torchvision's Resize(resize), then CenterCrop."""
        return cls("short_center", resize=resize)

    @classmethod
    def squash_center(cls, resize: int) -> "Crop":
        """Resizes to a square whatever the aspect ratio, then takes the centre."""
        return cls("squash_center", resize=resize)

    @classmethod
    def padded(cls, pad: int, mode: Literal["constant", "reflect"] = "constant") -> "Crop":
        """Gives torchvision's RandomCrop(size, padding=pad, padding_mode=mode)."""
        return cls("pad_crop", pad=pad, mode=mode)

    def __str__(self) -> str:
        """Gives the text that `Server.feed` and the option `--crop` take, such as "short_center:256"."""
        scale = (0.08, 1.0) if self.ratio and not self.scale else self.scale or ()
        values = [value for value in (self.resize, *scale, *(self.ratio or ()), self.pad, self.mode) if value is not None]
        return f"{self.kind}:{','.join(map(str, values))}" if values else self.kind


@dataclass(frozen=True)
class ColorJitter:
    """torchvision's ColorJitter, with probability `prob`: factors in [max(0, 1 - b), 1 + b], a hue in [-h, h] turns (h at most 0.5)."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    prob: float = 1.0

    def __str__(self) -> str:
        """Gives the text that the option `--color-jitter` takes."""
        return ",".join(map(str, (self.brightness, self.contrast, self.saturation, self.hue, self.prob)))


@dataclass(frozen=True)
class Blur:
    """Pillow's GaussianBlur with probability `prob`; `sigma` bounds the standard deviation in pixels."""

    prob: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def __str__(self) -> str:
        """Gives the text that the option `--blur` takes."""
        return ",".join(map(str, (self.prob, *self.sigma)))


@dataclass(frozen=True)
class Solarize:
    """Inverts values at `threshold` (0 to 256) and above, with probability `prob`."""

    prob: float = 0.0
    threshold: float = 128.0

    def __str__(self) -> str:
        """Gives the text that the option `--solarize` takes."""
        return f"{self.prob},{self.threshold}"


@dataclass(frozen=True)
class Warping:
    """How a policy's rotations, shears and translations sample; `fill` is red, green and blue beyond the image, 0 to 255."""

    filter: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    fill: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class LaterViews:
    """Blur and solarization of a sample's views after the first, where they differ (DINO)."""

    blur: Blur = field(default_factory=Blur)
    solarize: Solarize = field(default_factory=Solarize)


@dataclass(frozen=True)
class Augment:
    """What is done to training views after crop and flip, in this order.

    policy: "none", "rand-augment", "rand-augment:LAYERS,MAGNITUDE", "trivial-augment-wide", "auto-augment", "3-augment", or a string of timm's
        such as "rand-m9-mstd0.5-inc1".
    grayscale: probability of an image in gray.
    """

    policy: str = "none"
    jitter: ColorJitter = field(default_factory=ColorJitter)
    grayscale: float = 0.0
    blur: Blur = field(default_factory=Blur)
    solarize: Solarize = field(default_factory=Solarize)
    warping: Warping = field(default_factory=Warping)
    later: LaterViews | None = None


@dataclass(frozen=True)
class Erase:
    """Random erasing of normalized values, with probability `prob` a view.

    mode: "const" (0), "rand" (a number of N(0, 1) for each channel of a box) or "pixel" (one for each value).
    count: the most boxes of a view, 1 to 8.
    area, ratio: least and largest share of the area (divided by the number of boxes) and aspect ratio, height over width.
    when: "before-mix" (an image and its partner have boxes of their own) or "after-mix".
    """

    prob: float = 0.0
    mode: Literal["const", "rand", "pixel"] = "const"
    count: int = 1
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    when: Literal["before-mix", "after-mix"] = "before-mix"

    def __str__(self) -> str:
        """Gives the text that the option `--erase` takes."""
        return ",".join(map(str, (self.prob, self.mode, self.count, self.when, *self.area, *self.ratio)))


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed; `mixup` and `cutmix` are the α of Beta(α, α), or None; `off_epoch` is the first epoch without mixing."""

    mixup: float | None = None
    cutmix: float | None = None
    prob: float = 1.0
    switch: float = 0.5
    per: Literal["per-image", "per-pair", "per-batch"] = "per-image"
    fold: bool = False
    pairing: Literal["shuffle", "second-batch", "reverse", "roll"] = "shuffle"
    off_epoch: int | None = None


@dataclass(frozen=True)
class Grow:
    """Views of `size` up to epoch `start` grow linearly, by multiples of 32 pixels, to the recipe's size from epoch `end` on (FFCV)."""

    size: int | tuple[int, int]
    start: int
    end: int


@dataclass(frozen=True)
class TrainView:
    """How training images are shown, drawn and mixed.

    size: pixels of a side, or height and width; of the largest views, if they `grow`.
    flip: probability of a horizontal flip.
    repeats: how often each sample comes in a row, in epochs of the usual length.
    views: of each sample, one row after the other.
    """

    size: int | tuple[int, int] = 224
    crop: Crop = field(default_factory=Crop.random_resized)
    interpolation: Interpolation = "bilinear"
    flip: float = 0.5
    repeats: int = 1
    views: int = 1
    augment: Augment = field(default_factory=Augment)
    erase: Erase = field(default_factory=Erase)
    mix: Mix = field(default_factory=Mix)
    grow: Grow | None = None


@dataclass(frozen=True)
class ValView:
    """How validation images are shown; `size` is pixels of a side, or height and width."""

    size: int | tuple[int, int] = 224
    crop: Crop = field(default_factory=lambda: Crop.short_center(256))
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class Recipe:
    """A training recipe; by default torchvision's first (ImageNet's mean and std, random resized crop and flip, centre crop)."""

    name: str = "custom"
    train: TrainView = field(default_factory=TrainView)
    val: ValView = field(default_factory=ValView)
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    about: str = ""
    steps: tuple[Callable[[Any], Any], ...] = ()
    """Functions that a `mixd.torch.DataLoader` applies to each batch of images; see `then`."""

    def then(self, step: Callable[[Any], Any]) -> "Recipe":
        """Gives the recipe with one more step on the trainer's side: a function of a batch's `x`, a tensor `[B, 3, H, W]`, that returns another.

        A `mixd.torch.DataLoader` applies it where the batch lies (`device`): kornia's or torchvision's v2 transforms on a GPU, say. It costs the trainer
        what it costs there, once for each batch; mixing has taken place, and labels do not change. It may write into `x`. With `dtype="u8"` the
        feed delivers rendered views as bytes, and a step normalizes them.
        """
        return replace(self, steps=(*self.steps, step))

    def to_dict(self) -> dict[str, Any]:
        """Gives the recipe as `mixd recipe NAME` prints it."""
        recipe = asdict(replace(self, steps=())) | {"mean": list(self.mean), "std": list(self.std)}
        grow = recipe["train"]["grow"]
        for view in (recipe["train"], recipe["val"], *([grow] if grow else [])):
            if not isinstance(view["size"], int):
                view["size"] = "x".join(map(str, view["size"]))
        for view in (recipe["train"], recipe["val"]):
            view["crop"] = {key: value for key, value in view["crop"].items() if value is not None}
        del recipe["steps"]
        mix = recipe["train"]["mix"]
        if grow:
            grow["from"], grow["to"] = grow.pop("start"), grow.pop("end")
        for stage, key in ((recipe["train"], "grow"), (recipe["train"]["augment"], "later"), (mix, "off_epoch")):
            if stage[key] is None:
                del stage[key]
        for alpha in ("mixup", "cutmix"):
            mix[alpha] = "none" if mix[alpha] is None else mix[alpha]
        return recipe
