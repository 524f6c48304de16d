"""Recipes from the transforms of torchvision and timm, whose objects are recognized by the names of their classes: neither is imported.

mixd renders as torchvision and timm render PIL images. Of a chain that converts to a tensor early, crops and flips are converted all the
same if resizes are bilinear with antialias, as these differ by about one level of 255 at most. What changes colors must come before the
conversion: for tensors torchvision computes hue, luma and warps in other ways (by 10 levels of hue, and more at the edges of rotations).
"""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from .errors import SpecError
from .recipe import ColorJitter, Crop, Erase, Recipe, Solarize, TrainView, ValView, Warping

__all__ = ["from_torchvision"]

# The order of mixd's stages. A resize may be followed by a centre crop.
_ORDER = ("resize", "crop", "flip", "policy", "jitter", "grayscale", "solarize", "normalize", "erase")
# Pillow's numbers of its filters, which timm has and torchvision accepts.
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_OUTSIDE = "leave it out, or apply it to batches with Recipe.then"

# What timm's `rand-…` draws from; with `inc1` the latter have "Increasing" behind their names.
_TIMM_FIXED = ("AutoContrast", "Equalize", "Invert", "Rotate", "SolarizeAdd", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
_TIMM_GROWING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
# timm's `3a`: name, probability, magnitude, its standard deviation and bound. They stand for gray, a threshold of 128 and radii of 0.1 to 2.
_TIMM_3A = [[("Desaturate", 1, 10, 0, None)], [("GaussianBlurRand", 1, 10, 0, None)], [("Solarize", 1, 5, 0, None)]]


def from_torchvision(transform: Any, *, train: bool | None = None, name: str = "custom") -> Recipe:
    """Gives the recipe that is equivalent to a transform of torchvision (v1 or v2) or of timm's `create_transform`.

    transform: a Compose, a Sequential, a list or tuple of transforms (such as timm's with `separate=True`), one of torchvision's presets of
        weights, or a ClassificationPresetTrain or -Eval as torchvision's references have them.
    train: whether it gives the recipe's training view, else its validation view; by default, whether anything in it is random.

    Mean and std are those of both views: 0 and 1 where nothing is normalized. The other view has the same size and interpolation. For
    validation, a crop that is not random stays; in place of a random resized crop, the short side is resized to 256/224 of the size and the
    centre is taken; in place of a padded crop, to the size itself. For training, it is a random resized crop and a flip with probability ½.
    Repeats and the mix are no part of a transform (`dataclasses.replace` sets them), nor is `dtype="u8"` of a feed, which gives the bytes of a
    chain that converts to no floats.

    Raises SpecError, which names the element and the remedy, where no recipe is equivalent.
    """
    return read(transform).recipe(train, name)


def read(transform: Any) -> "Chain":
    """What a transform's elements say together."""
    chain = Chain()
    for element in _elements(transform):
        handler = _HANDLERS.get(key_of(element))
        if handler is None:
            _refuse(element, *_REASONS.get(key_of(element), ("mixd has no such stage", _OUTSIDE)))
        handler(chain, element)
        chain.names.append(type(element).__name__)
    return chain


def key_of(element: object) -> str:
    """The package and name of its class, such as "timm.RandomErasing". Subclasses from elsewhere have another one: they may do anything."""
    return f"{type(element).__module__.partition('.')[0]}.{type(element).__name__}"


def _elements(transform: Any) -> Iterator[Any]:
    """The elements of a chain in their order, nested ones too."""
    key, state = key_of(transform), getattr(transform, "__dict__", {})
    own = {name: value for name, value in state.items() if name[0] != "_" and name != "training"} | state.get("_modules", {})
    inner = own.get("transforms", own.get("trans"))
    if isinstance(transform, list | tuple) or key in _CONTAINERS:
        for element in inner if key == "torchvision.Compose" else transform:
            yield from _elements(element)
    elif len(own) == 1 and key_of(inner) in _CONTAINERS and type(transform).__name__.startswith("ClassificationPreset"):
        yield from _elements(inner)
    else:
        yield transform


def _text(element: object) -> str:
    """How messages name an element: as it prints itself, if that is short."""
    text = " ".join(repr(element).split())
    return type(element).__name__ if text.startswith("<") or len(text) > 120 else text


def _refuse(element: object, why: str, remedy: str) -> NoReturn:
    raise SpecError(f"{_text(element)}: {why} ({remedy})")


def _require(ok: bool, element: object, why: str, remedy: str) -> None:
    if not ok:
        _refuse(element, why, remedy)


def _filter(element: Any, mode: Any, allowed: Sequence[str]) -> Any:
    """The name of a filter, of torchvision's enumeration or Pillow's number."""
    remedy = 'use interpolation="bicubic", or train_interpolation="bicubic" of timm\'s loaders and scripts'
    _require(not isinstance(mode, list | tuple), element, "it draws an interpolation for each image", remedy)
    value = getattr(mode, "value", mode)
    found = _FILTERS.get(value, value)
    _require(found in allowed, element, f"its interpolation is {found}", f"use interpolation={' or '.join(allowed)}")
    return found


def _size(sides: Any) -> int | tuple[int, int]:
    found = sides if isinstance(sides, list | tuple) else [sides]
    return found[0] if found[0] == found[-1] else (found[0], found[1])


def _bounds(element: Any, name: str, bounds: Sequence[float], most: float) -> tuple[float, float]:
    low, high = map(float, bounds)
    _require(0 < low <= high <= most, element, f"its {name} is {tuple(bounds)}", f"use bounds with 0 < least <= largest <= {most}")
    return low, high


def _channels(element: Any, name: str, values: Any) -> tuple[float, ...]:
    """A number for each channel; of those in a tensor, the shortest that is the same float32."""
    numbers = values.tolist() if hasattr(values, "tolist") else values
    found = [numbers] if isinstance(numbers, int | float) else [*numbers]
    is_valid = len(found) in (1, 3) and all(map(math.isfinite, found))
    _require(is_valid, element, f"its {name} is {found}", "use three numbers, of red, green and blue")
    if numbers is not values:
        forms = ([float(f"{value:.{digits}g}") for digits in range(1, 10)] for value in found)
        found = [next(form for form in some if struct.pack("f", form) == struct.pack("f", some[-1])) for some in forms]
    return tuple(found * (3 // len(found)))


def _color(element: Any, fill: Any) -> tuple[int, int, int]:
    """The color beyond the image, as torchvision reads it for PIL images."""
    found = fill if isinstance(fill, list | tuple) else [0 if fill is None else fill]
    is_color = len(found) in (1, 3) and all(isinstance(value, int | float) and 0 <= value < 256 for value in found)
    _require(is_color, element, f"its fill is {fill!r}", "use a number of 0 to 255, or three")
    red, green, blue = (int(value) for value in [*found] * (3 // len(found)))
    return red, green, blue


@dataclass
class Chain:
    """What the elements so far say. The methods that take an element alone are its handlers."""

    # What an image has become, and by which element.
    values: Literal["pil", "bytes", "float"] = "pil"
    converted: Any = None
    # The element of each stage, and the first random one.
    placed: dict[str, Any] = field(default_factory=dict)
    random: Any = None
    names: list[str] = field(default_factory=list)
    # Of a resize: the short side, or height and width.
    resized: tuple[int, ...] = ()
    view: TrainView = field(default_factory=lambda: TrainView(size=0, flip=0.0))
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)

    def set(self, **values: Any) -> None:
        """Sets fields of the view."""
        self.view = replace(self.view, **values)

    def place(self, element: Any, stage: str, after: Sequence[str] = (), random: bool = True) -> None:
        """Puts an element into a stage; `after` names later stages that it may follow, as no value depends on the order."""
        for taken, other in self.placed.items():
            if taken == stage:
                _refuse(element, f"there is {_text(other)} already, and mixd has one such stage", "leave one of them out")
            if _ORDER.index(taken) > _ORDER.index(stage) and taken not in after:
                _refuse(element, f"it follows {_text(other)}, and mixd's order is {', '.join(_ORDER)}", f"put it before {_text(other)}")
        self.placed[stage] = element
        if random and self.random is None:
            self.random = element

    def change(self, element: Any, stage: str, **values: Any) -> None:
        """Puts an element that changes colors into its stage."""
        if self.values != "pil":
            why = f"after {_text(self.converted)} torchvision computes it otherwise than for PIL images, as which mixd renders"
            _refuse(element, why, f"put {_text(self.converted)} after it")
        self.place(element, stage)
        self.set(augment=replace(self.view.augment, **values))

    def resample(self, element: Any, mode: Any, antialias: Any) -> None:
        """Sets the filter of the resize."""
        self.set(interpolation=_filter(element, mode, ("bilinear", "bicubic")))
        if self.values != "pil" and not (antialias and self.view.interpolation == "bilinear"):
            why = f"after {_text(self.converted)} only bilinear with antialias is as for PIL images, as which mixd renders"
            _refuse(element, why, f"put {_text(self.converted)} after it, or use bilinear and antialias=True")

    def resize(self, element: Any, sides: Any = None) -> None:
        _require(getattr(element, "max_size", None) is None, element, "mixd has no max_size", "leave it out")
        self.place(element, "resize", random=False)
        sides = sides or element.size
        self.resized = tuple(sides) if isinstance(sides, list | tuple) else (sides,)
        if len(self.resized) == 2:
            self.set(size=_size(self.resized), crop=Crop())
        self.resample(element, element.interpolation, element.antialias)

    def center(self, element: Any, sides: Any = None) -> None:
        self.place(element, "crop", random=False)
        size = _size(sides or element.size)
        _require(bool(self.resized), element, "mixd has no centre crop without a resize", "put Resize(size) before it")
        if len(self.resized) == 1:
            self.set(crop=Crop.short_center(self.resized[0]))
        elif size != self.view.size:
            why = f"it follows {_text(self.placed['resize'])}, and mixd takes the centre of squares or of whole images"
            _require(self.resized[0] == self.resized[1], element, why, "resize to a square, or to the size of the crop")
            self.set(crop=Crop.squash_center(self.resized[0]))
        self.set(size=size)

    def weights(self, element: Any) -> None:
        self.resize(element, element.resize_size)
        self.center(element, element.crop_size)
        self.to_float(element)
        self.normalize(element)

    def crop(self, element: Any, crop: Crop, after: Sequence[str] = ()) -> None:
        """Takes a random crop of the whole image."""
        why = f"it follows {_text(self.placed.get('resize'))}, and mixd's random crops are of the whole image"
        _require(not self.resized, element, why, "leave the resize out; --source of `mixd serve` shrinks images to a short side")
        self.place(element, "crop", after)
        self.set(size=_size(element.size), crop=crop)

    def resized_crop(self, element: Any) -> None:
        scale, ratio = _bounds(element, "scale", element.scale, 1), _bounds(element, "ratio", element.ratio, 1000)
        self.crop(element, Crop.random_resized(scale, ratio))
        # timm's has no such attribute, and torchvision's default.
        self.resample(element, element.interpolation, getattr(element, "antialias", True))

    def padded_crop(self, element: Any) -> None:
        padding, mode = element.padding or 0, element.padding_mode
        pads = [*padding] if isinstance(padding, list | tuple) else [padding]
        _require(not element.pad_if_needed, element, "mixd puts small images into the centre", "use pad_if_needed=False")
        _require(pads[0] >= 0 and len({*pads}) == 1, element, f"its padding is {padding}", "use one number, at least 0")
        is_known = not any(pads) or mode == "reflect" or (mode == "constant" and _color(element, element.fill) == (0, 0, 0))
        _require(is_known, element, f"it pads with {mode} and fill {element.fill}", "use reflect, or constant with fill=0")
        # A window is as likely as its mirror image.
        self.crop(element, Crop.padded(int(pads[0]), mode if any(pads) else "constant"), after=("flip",))

    def flip(self, element: Any) -> None:
        # Not a policy: warps and their fill would be mirrored, too.
        self.place(element, "flip", after=("jitter", "grayscale", "solarize", "normalize"))
        self.set(flip=float(element.p))

    def jitter(self, element: Any, prob: float = 1.0) -> None:
        extents = {}
        for name, middle in {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}.items():
            low, high = getattr(element, name) or (middle, middle)
            # The difference without its error.
            extent = extents[name] = round(high - middle, 12)
            is_even = math.isclose(low, -extent if name == "hue" else max(0.0, 1 - extent), abs_tol=1e-9)
            _require(is_even, element, f"its {name} of {low} to {high} is not even about {middle:g}", f"give {name} one number")
        self.change(element, "jitter", jitter=ColorJitter(**extents, prob=prob))

    def apply(self, element: Any) -> None:
        for child in element.transforms:
            if key_of(child) in _REASONS:
                _refuse(child, *_REASONS[key_of(child)])
        is_jitter = [key_of(child) for child in element.transforms] == ["torchvision.ColorJitter"]
        _require(is_jitter, element, "mixd applies one ColorJitter by chance, and nothing else", _OUTSIDE)
        self.jitter(element.transforms[0], float(element.p))

    def solarize(self, element: Any) -> None:
        _require(0 <= element.threshold <= 256, element, f"its threshold is {element.threshold}", "use 0 to 256")
        self.change(element, "solarize", solarize=Solarize(float(element.p), float(element.threshold)))

    def policy(self, element: Any, policy: str, mode: Any, fill: Any) -> None:
        warping = Warping(_filter(element, mode, ("nearest", "bilinear", "bicubic")), _color(element, fill))
        self.change(element, "policy", policy=policy, warping=warping)

    def torchvision_policy(self, element: Any) -> None:
        kind, layers, magnitude = type(element).__name__, getattr(element, "num_ops", 1), getattr(element, "magnitude", 0)
        is_known = getattr(element, "num_magnitude_bins", 31) == 31 and 1 <= layers <= 8 and 0 <= magnitude <= 30
        _require(is_known, element, "mixd has 1 to 8 operations, of magnitudes 0 to 30 in 31 bins", "use such numbers")
        if kind == "AutoAugment":
            _require(element.policy.value == "imagenet", element, "mixd has the policy of ImageNet", "use AutoAugmentPolicy.IMAGENET")
        names = {"AutoAugment": "auto-augment", "TrivialAugmentWide": "trivial-augment-wide"}
        self.policy(element, names.get(kind, f"rand-augment:{layers},{magnitude}"), element.interpolation, element.fill)

    def timm_rand(self, element: Any) -> None:
        names = sorted(op.name for op in element.ops)
        increasing = names == sorted((*_TIMM_FIXED, *(f"{name}Increasing" for name in _TIMM_GROWING)))
        settings = [{**vars(op), "name": None, "aug_fn": None, "level_fn": None} for op in element.ops]
        is_even = element.choice_weights is None and settings == settings[:1] * len(settings)
        is_rand = is_even and (increasing or names == sorted((*_TIMM_FIXED, *_TIMM_GROWING)))
        _require(is_rand, element, "it does not draw from timm's fifteen operations alike", "leave -t out of auto_augment")
        op, layers = element.ops[0], element.num_layers
        fill, most, std = op.kwargs["fillcolor"], op.magnitude_max or 10, max(op.magnitude_std, 0)
        _require(std < math.inf, element, "its magnitudes are uniform", "use a finite mstd, such as -mstd0.5")
        is_known = most == 10 and 0 <= op.magnitude <= 10 and 1 <= layers <= 8
        why = f"it has {layers} layers of magnitude {op.magnitude} up to {most}"
        _require(is_known, element, why, "use -m0 to -m10, -n1 to -n8, and no -mmax")
        is_known = op.hparams.get("translate_pct", 0.45) == 0.45 and isinstance(fill, tuple)
        _require(is_known, element, f"its hparams are {op.hparams}", "use three numbers for img_mean, and no translate_pct")
        keys = {"m": op.magnitude, "mstd": std, "n": layers, "p": op.prob, "inc": int(increasing)}
        # Numbers without an exponent.
        policy = "-".join(["rand", *(key + f"{value:.12f}".rstrip("0").rstrip(".") for key, value in keys.items())])
        self.policy(element, policy, op.kwargs["resample"], fill)

    def timm_auto(self, element: Any) -> None:
        keys = ("name", "prob", "magnitude", "magnitude_std", "magnitude_max")
        is_3a = sorted([tuple(getattr(op, key) for key in keys) for op in ops] for ops in element.policy) == _TIMM_3A
        remedy = "use auto_augment rand-m9-mstd0.5-inc1 or 3a, or torchvision's AutoAugment()"
        _require(is_3a, element, "mixd has none of timm's AutoAugment policies but 3a", remedy)
        self.change(element, "policy", policy="3-augment")

    def erase(self, element: Any, erase: Erase) -> None:
        self.place(element, "erase")
        _require(self.values == "float", element, "mixd erases floats", "put it after the conversion to float32")
        self.set(erase=erase)

    def random_erasing(self, element: Any) -> None:
        value = element.value
        # v2 has None for "random".
        is_noise = value is None or value == "random"
        is_known = is_noise or not any(value if isinstance(value, list | tuple) else [value])
        _require(is_known, element, f"its value is {value}", 'use 0 or "random"')
        area, ratio = _bounds(element, "scale", element.scale, 1), _bounds(element, "ratio", element.ratio, 1000)
        self.erase(element, Erase(float(element.p), "pixel" if is_noise else "const", area=area, ratio=ratio))

    def timm_erasing(self, element: Any) -> None:
        least, most = element.min_count, element.max_count
        _require(least == 1 <= most <= 8, element, f"it erases {least} to {most} boxes", "use 1 to at most 8")
        area = _bounds(element, "area", (element.min_area, element.max_area), 1)
        # It keeps logarithms, whose error was not asked for.
        low, high = (round(math.exp(value), 15) for value in element.log_aspect_ratio)
        ratio = _bounds(element, "aspect ratio", (low, 1 / low if math.isclose(high, 1 / low) else high), 1000)
        mode: Literal["const", "rand", "pixel"] = "pixel" if element.per_pixel else "rand" if element.rand_color else "const"
        self.erase(element, Erase(float(element.probability), mode, most, area, ratio))

    def to_bytes(self, element: Any) -> None:
        if self.values == "pil":
            self.values, self.converted = "bytes", element

    def to_float(self, element: Any) -> None:
        why = f"after {_text(self.converted)} it leaves values of 0 to 255"
        _require(self.values != "bytes", element, why, "use ToDtype(torch.float32, scale=True)")
        if self.values == "pil":
            self.values, self.converted = "float", element

    def to_dtype(self, element: Any) -> None:
        _require(self.values != "pil", element, "it does not convert PIL images", "put ToImage() before it")
        if str(element.dtype) == "torch.uint8" and self.values == "bytes":
            return
        # ConvertImageDtype always scales.
        is_scaled = self.values == "float" or getattr(element, "scale", True)
        remedy = "use torch.float32 and scale=True; a feed's dtype may be f16, bf16 or u8"
        _require(str(element.dtype) == "torch.float32" and is_scaled, element, "mixd normalizes float32 in [0, 1]", remedy)
        self.values = "float"

    def normalize(self, element: Any) -> None:
        self.place(element, "normalize", random=False)
        remedy = "put ToTensor(), or ToImage() and ToDtype(torch.float32, scale=True), before it"
        _require(self.values == "float", element, "it needs values in [0, 1]", remedy)
        self.mean, self.std = _channels(element, "mean", element.mean), _channels(element, "std", element.std)
        _require(min(self.std) >= 1e-30, element, f"its std is {self.std}", "use positive numbers")

    def recipe(self, train: bool | None, name: str) -> Recipe:
        """Gives the recipe of the whole chain."""
        view, crop = self.view, self.view.crop
        if not view.size:
            what = ", ".join(self.names) or "the transform"
            raise SpecError(f"{what}: views have no fixed size (put CenterCrop(size) after Resize(size), or use Resize((height, width)))")
        is_train = self.random is not None if train is None else train
        if not is_train and self.random is not None:
            _refuse(self.random, "validation views have no random stage", "leave it out, or give train=True")
        side = min(view.size) if isinstance(view.size, tuple) else view.size
        short = {"random_resized_crop": math.floor(side * 256 / 224 + 0.5), "pad_crop": side}.get(crop.kind)
        val = ValView(view.size, Crop.short_center(short) if short else crop, view.interpolation)
        view = view if is_train else TrainView(view.size, interpolation=view.interpolation)
        about = f"from {', '.join(self.names)}; {'validation' if is_train else 'training'} views are a default"
        return Recipe(name, view, val, self.mean, self.std, about)


_CONTAINERS = {"torchvision.Compose", "torch.Sequential"}

_HANDLERS: dict[str, Callable[[Chain, Any], None]] = {
    "torchvision.Resize": Chain.resize,
    "torchvision.CenterCrop": Chain.center,
    "torchvision.ImageClassification": Chain.weights,
    **dict.fromkeys(("torchvision.RandomResizedCrop", "timm.RandomResizedCropAndInterpolation"), Chain.resized_crop),
    "torchvision.RandomCrop": Chain.padded_crop,
    "torchvision.RandomHorizontalFlip": Chain.flip,
    **dict.fromkeys(("torchvision.RandAugment", "torchvision.TrivialAugmentWide", "torchvision.AutoAugment"), Chain.torchvision_policy),
    "timm.RandAugment": Chain.timm_rand,
    "timm.AutoAugment": Chain.timm_auto,
    "torchvision.ColorJitter": Chain.jitter,
    "torchvision.RandomApply": Chain.apply,
    "torchvision.RandomGrayscale": lambda chain, element: chain.change(element, "grayscale", grayscale=float(element.p)),
    "torchvision.RandomSolarize": Chain.solarize,
    **dict.fromkeys(("torchvision.PILToTensor", "torchvision.ToImage", "timm.ToNumpy"), Chain.to_bytes),
    **dict.fromkeys(("torchvision.ToTensor", "timm.MaybeToTensor"), Chain.to_float),
    **dict.fromkeys(("torchvision.ToDtype", "torchvision.ConvertImageDtype"), Chain.to_dtype),
    "torchvision.Normalize": Chain.normalize,
    "torchvision.RandomErasing": Chain.random_erasing,
    "timm.RandomErasing": Chain.timm_erasing,
    # What changes no image: mixd's are RGB.
    **dict.fromkeys(("torch.Identity", "torchvision.Identity", "torchvision.ToPureTensor", "torchvision.RGB"), lambda *_: None),
}

# Why what is often asked for is refused, and what to do.
_REASONS = {
    "torchvision.Lambda": ("mixd cannot look into a function", _OUTSIDE),
    "torchvision.GaussianBlur": (
        "it is a convolution with a kernel of fixed size, and mixd's blur is Pillow's ImageFilter.GaussianBlur",
        "leave it out, and set augment=mixd.Augment(blur=mixd.Blur(prob, sigma)) with dataclasses.replace, or blur batches with Recipe.then",
    ),
    "timm.ResizeKeepRatio": ("it rounds sides that mixd truncates, or draws them", "use crop_mode center or squash, train_crop_mode rrc"),
    "timm.MaybePILToTensor": ("mean and std are not in the chain", "use create_transform(use_prefetcher=False, normalize=True)"),
}
