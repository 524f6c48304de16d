#!/usr/bin/env python3
"""One contender of `make compare`, in a process of its own: prints one line of JSON.

Everyone does the same work: images of train/ in a new order each epoch, batches of 64, 128x128 bilinear with antialiasing, f32 NCHW,
normalised, mixed with a shuffle of the batch and a lambda per image from Beta(0.4, 0.4) folded. Contenders named after a recipe follow that
one instead (docs/spec/recipes.md, without repeats); where a library lacks an operation or a filter, with the nearest that it has.
The consumer reads one element of each view; a sample with several views counts as one image.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import log
from pathlib import Path
from typing import NamedTuple

BATCH, SIDE, WORKERS = 64, 128, 2
MEAN, STD = (0.47, 0.48, 0.45), (0.29, 0.28, 0.30)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Recipe(NamedTuple):
    """One view: a random resized crop (aspect ratio 3/4 to 4/3) and a flip, normalised with ImageNet's mean and std; and these stages."""

    side: int
    filter: str = "bilinear"
    # As timm names it; "3a" is DeiT III's 3-Augment.
    policy: str = ""
    fill: tuple[int, int, int] = (0, 0, 0)
    # Probability of an erased box, whether noise or 0 fills it, its share of the area, its aspect ratio.
    erase: float = 0
    noise: bool = False
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    # Mixup's alpha, or 0 for no mix. Half of the batches have CutMix with alpha 1 instead; one lambda a batch.
    mixup: float = 0
    # Share of the area that is cropped.
    scale: tuple[float, float] = (0.08, 1.0)
    # Strengths of brightness, contrast, saturation and hue, and the probability that they are changed at all.
    jitter: tuple[float, float, float, float] = (0, 0, 0, 0)
    jitter_prob: float = 1
    # Probabilities of what follows: gray, then blur with sigma 0.1 to 2, then solarization at 128.
    grayscale: float = 0
    blur: float = 0
    solarize: float = 0


LARGE = Recipe(224, "bicubic", scale=(0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grayscale=0.2)
SMALL = LARGE._replace(side=96, scale=(0.05, 0.4), blur=0.5)
# The views of a sample. Only recipes of one view are mixed.
RECIPES = {
    "torchvision-v1": [Recipe(224)],
    "torchvision-v2": [Recipe(176, policy="trivial-augment-wide", erase=0.1, mixup=0.2)],
    "deit": [Recipe(224, "bicubic", "rand-m9-mstd0.5-inc1", (124, 116, 104), 0.25, True, (0.02, 1 / 3), (0.3, 1 / 0.3), 0.8)],
    "deit3": [Recipe(224, "bicubic", "3a", mixup=0.8, jitter=(0.3, 0.3, 0.3, 0))],
    "dino": [LARGE._replace(blur=1), LARGE._replace(blur=0.1, solarize=0.2), *[SMALL] * 8],
}


def files(data: Path) -> tuple[list[str], list[int]]:
    """The training files and their classes."""
    classes = sorted(path.name for path in (data / "train").iterdir())
    found = [(str(path), label) for label, name in enumerate(classes) for path in sorted((data / "train" / name).iterdir())]
    return [path for path, _ in found], [label for _, label in found]


def affine():
    """Normalising as one factor and one summand for each channel."""
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return 1 / (255 * std), -mean / std


def mix_of():
    """Normalising and mixing with torch's operations, in place where that is possible."""
    import torch

    scale, offset = affine()
    beta = torch.distributions.Beta(0.4, 0.4)

    def mix(images, labels):
        raw, shuffle = beta.sample((len(images),)), torch.randperm(len(images))
        weight = torch.maximum(raw, 1 - raw).view(-1, 1, 1, 1)
        values = images.float().mul_(scale).add_(offset)
        return torch.lerp(values.index_select(0, shuffle), values, weight), labels, labels[shuffle], weight

    return mix


def decoder_of(name: str) -> Callable:
    """Decodes a file: to a PIL image, or to a u8 tensor [3, H, W]."""
    if name == "pil":
        from PIL import Image

        return lambda path: Image.open(path).convert("RGB")
    if name == "torchcodec":
        from torchcodec.decoders import decode_jpeg

        return lambda path: decode_jpeg(path, mode="RGB")
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return lambda path: decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


class Images:
    """A map-style dataset of the training images."""

    def __init__(self, data: Path, decoder: str, transform: Callable) -> None:
        self.paths, self.labels = files(data)
        self.classes = len(set(self.labels))
        self.decode, self.transform = decoder_of(decoder), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> tuple:
        return self.transform(self.decode(self.paths[at])), self.labels[at]


def loaded(images: Images, collate: Callable | None = None) -> Iterator:
    """Batches of torch's DataLoader; its sampler runs on into the next epoch, so that no worker waits for the end of one."""
    import torch

    # More threads take the workers' cores.
    torch.set_num_threads(1)
    sampler = torch.utils.data.RandomSampler(images, num_samples=len(images) * 1_000_000)
    return iter(torch.utils.data.DataLoader(images, BATCH, sampler=sampler, num_workers=WORKERS, prefetch_factor=4, collate_fn=collate))


def dataloader(data: Path, decoder: str) -> Iterator:
    """torch's DataLoader: decoding and resizing in workers, mixing in the consumer, where it is fastest."""
    import numpy
    import torch
    from PIL import Image
    from torchvision.transforms.v2 import functional

    def pil(image):
        return torch.from_numpy(numpy.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))).permute(2, 0, 1)

    resize = pil if decoder == "pil" else partial(functional.resize, size=[SIDE, SIDE], antialias=True)
    mix = mix_of()
    return (mix(*batch) for batch in loaded(Images(data, decoder, resize)))


def run(pipeline) -> Iterator:
    """Batches of a DALI pipeline."""
    import numpy

    pipeline.build()
    while True:
        yield tuple(numpy.from_dlpack(output.as_tensor()) for output in pipeline.run())


def dali(data: Path) -> Iterator:
    """NVIDIA DALI on the CPU, with mixing in its pipeline."""
    from nvidia.dali import fn, math, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None)
    def mixed():
        encoded, labels = fn.readers.file(file_root=str(data / "train"), random_shuffle=True, initial_fill=4096)
        images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        images = fn.resize(images, size=(SIDE, SIDE), interp_type=types.INTERP_TRIANGULAR, antialias=True)
        scale = lambda values: [255 * value for value in values]
        values = fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mean=scale(MEAN), std=scale(STD))
        raw, shuffle = fn.random.beta(alpha=0.4, beta=0.4), fn.batch_permutation()
        weight = math.max(raw, 1 - raw)
        partner = fn.permute_batch(values, indices=shuffle)
        return weight * values + (1 - weight) * partner, labels, fn.permute_batch(labels, indices=shuffle), weight

    return run(mixed())


def transform_of(recipe: Recipe, decoder: str) -> Callable:
    """torchvision's transforms as its references, DeiT III and DINO have them, of PIL images or of u8 tensors."""
    import torch
    from PIL import ImageFilter
    from torchvision.transforms import InterpolationMode, v2

    # Warps of tensors are nearest or bilinear.
    warp = {"interpolation": InterpolationMode(recipe.filter if decoder == "pil" else "bilinear"), "fill": list(recipe.fill)}
    # 27 of 30 is timm's magnitude 9 of 10.
    layer = v2.RandomApply([v2.RandAugment(1, 27, **warp)], p=0.5)
    # Of PIL images as DINO has it, of tensors as DINOv2 has it.
    pillow = lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
    blur = pillow if decoder == "pil" else v2.GaussianBlur(9, (0.1, 2.0))
    policies = {
        "": [],
        "trivial-augment-wide": [v2.TrivialAugmentWide(**warp)],
        "rand-m9-mstd0.5-inc1": [layer, layer],
        "3a": [v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1), blur])],
    }
    optional = [
        (any(recipe.jitter), v2.RandomApply([v2.ColorJitter(*recipe.jitter)], recipe.jitter_prob)),
        (recipe.grayscale, v2.RandomGrayscale(recipe.grayscale)),
        (recipe.blur, v2.RandomApply([blur], recipe.blur)),
        (recipe.solarize, v2.RandomSolarize(128, recipe.solarize)),
    ]
    return v2.Compose(
        [
            v2.RandomResizedCrop(recipe.side, recipe.scale, interpolation=InterpolationMode(recipe.filter), antialias=True),
            v2.RandomHorizontalFlip(),
            *policies[recipe.policy],
            *[stage for wanted, stage in optional if wanted],
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD, inplace=True),
            v2.RandomErasing(recipe.erase, recipe.area, recipe.ratio, "random" if recipe.noise else 0, inplace=True),
        ]
    )


def recipe_dataloader(data: Path, views: list[Recipe], decoder: str) -> Iterator:
    """torch's DataLoader with torchvision's transforms; mixing where it collates."""
    import torch
    from torchvision.transforms import v2

    transforms = [transform_of(view, decoder) for view in views]
    if len(views) > 1:
        return loaded(Images(data, decoder, lambda image: [transform(image) for transform in transforms]))
    images = Images(data, decoder, transforms[0])
    if not views[0].mixup:
        return loaded(images)
    mix = v2.RandomChoice([of(alpha=alpha, num_classes=images.classes) for of, alpha in ((v2.MixUp, views[0].mixup), (v2.CutMix, 1.0))])
    return loaded(images, lambda batch: mix(*torch.utils.data.default_collate(batch)))


def timm(data: Path, recipe: Recipe, prefetcher: bool) -> Iterator:
    """timm's loader. Its prefetcher normalises and erases in the consumer, after u8 images were mixed; without it workers do everything."""
    import torch
    from timm.data import FastCollateMixup, ImageDataset, Mixup, create_loader

    torch.set_num_threads(1)
    images = ImageDataset(str(data / "train"))
    mix = (FastCollateMixup if prefetcher else Mixup)(recipe.mixup, 1.0, num_classes=len(images.reader.class_to_idx))
    loader = create_loader(
        images,
        recipe.side,
        BATCH,
        is_training=True,
        interpolation=recipe.filter,
        auto_augment=recipe.policy,
        color_jitter=recipe.jitter[0],
        re_prob=recipe.erase,
        re_mode="pixel" if recipe.noise else "const",
        num_workers=WORKERS,
        collate_fn=mix if prefetcher else lambda batch: mix(*torch.utils.data.default_collate(batch)),
        device=torch.device("cpu"),
        use_prefetcher=prefetcher,
        use_multi_epochs_loader=True,
    )
    while True:
        yield from loader


def recipe_dali(data: Path, views: list[Recipe]) -> Iterator:
    """NVIDIA DALI on the CPU, decoding only the crop of a single view; with its policies, and with boxes and mixes made of its operators."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug import augmentations, rand_augment, trivial_augment
    from nvidia.dali.math import exp, sqrt
    from nvidia.dali.math import max as maximum
    from nvidia.dali.math import min as minimum

    recipe, classes = views[0], len(set(files(data)[1]))
    side, kernel = recipe.side, {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}[recipe.filter]
    uniform = lambda low, high: fn.random.uniform(range=[low, high])
    happens = lambda prob: fn.random.coin_flip(probability=prob, dtype=types.BOOL)
    # The first image's draw, for the whole batch.
    shared = lambda draws: fn.permute_batch(draws, indices=[0] * BATCH)
    reverse = lambda images: fn.permute_batch(images, indices=list(range(BATCH))[::-1])
    pixels = lambda *shares: fn.cast(fn.stack(*shares) * side, dtype=types.INT32)
    part = lambda images, corner, size: fn.slice(images, start=corner, shape=size, axes=[1, 2])
    erase = lambda images, corner, size: fn.erase(images, anchor=corner * 1.0, shape=size * 1.0, axes=[1, 2])

    def paste(images, corner, size, box):
        around = fn.slice(box, start=-corner, shape=[side, side], axes=[1, 2], out_of_bounds_policy="pad")
        return erase(images, corner, size) + around

    # These three in floats, neither rounded nor clipped in between: half the time of u8.
    def blurred(images, when):
        if when:
            images = fn.gaussian_blur(images, sigma=uniform(0.1, 2))
        return images

    def solarized(images, when):
        if when:
            images = minimum(images, 255.0 - images)
        return images

    def color(images, view, gray):
        # One linear map does all, in any order; contrast is about 128, not about the mean.
        jitter = happens(view.jitter_prob)
        brightness, contrast, saturation, hue = (jitter * uniform(-strength, strength) if strength else 0 for strength in view.jitter)
        factors = {"brightness": 1 + brightness, "contrast": 1 + contrast, "saturation": (gray ^ True) * (1 + saturation), "hue": 360 * hue}
        return fn.color_twist(images, dtype=types.FLOAT, **factors)

    def normalized(images):
        mean, std = ([255 * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std, mirror=mirror)

    def one_of_several(images, view):
        size, crop = (view.side, view.side), {"random_area": view.scale, "random_aspect_ratio": [3 / 4, 4 / 3], "num_attempts": 10}
        images = fn.random_resized_crop(images, size=size, interp_type=kernel, antialias=True, **crop)
        images = blurred(color(images, view, happens(view.grayscale)), happens(view.blur))
        if view.solarize:
            images = solarized(images, happens(view.solarize))
        return normalized(images)

    def policy(images):
        warp = {"interp_type": types.INTERP_LINEAR, "fill_value": round(sum(recipe.fill) / 3)}
        if not recipe.policy:
            return images
        if recipe.policy == "3a":
            choice = fn.random.uniform(values=[0, 1, 2])
            images = fn.cast(images, dtype=types.FLOAT)
            return color(solarized(blurred(images, choice == 1), choice == 2), recipe, choice == 0)
        if recipe.policy == "trivial-augment-wide":
            return trivial_augment.trivial_augment_wide(images, **warp)
        # timm's 15 operations at its magnitude 9 of 10, and as many identities: they are applied with probability 1/2.
        suite = [*rand_augment.get_rand_augment_suite(), augmentations.invert, augmentations.solarize_add]
        return rand_augment.apply_rand_augment([*suite, *[augmentations.identity] * 14], images, n=2, m=27, **warp)

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, enable_conditionals=True)
    def augmented():
        encoded, labels = fn.readers.file(file_root=str(data / "train"), random_shuffle=True, initial_fill=4096)
        if len(views) > 1:
            images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
            return (*[one_of_several(images, view) for view in views], labels)
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3], num_attempts=10
        )
        values = normalized(policy(fn.resize(images, size=(side, side), interp_type=kernel, antialias=True)))
        if recipe.erase:
            if happens(recipe.erase):
                area, ratio = uniform(*recipe.area), exp(uniform(log(recipe.ratio[0]), log(recipe.ratio[1])))
                height, width = minimum(sqrt(area * ratio), 1), minimum(sqrt(area / ratio), 1)
                corner, size = pixels(uniform(0, 1) * (1 - height), uniform(0, 1) * (1 - width)), pixels(height, width)
                if recipe.noise:
                    values = paste(values, corner, size, fn.random.normal(part(values, corner, size)))
                else:
                    values = erase(values, corner, size)
        if not recipe.mixup:
            return values, labels
        targets = fn.one_hot(labels, num_classes=classes)
        partner, weight = reverse(values), shared(fn.random.beta(alpha=recipe.mixup, beta=recipe.mixup))
        y, x, half = shared(uniform(0, 1)), shared(uniform(0, 1)), sqrt(shared(uniform(0, 1))) / 2
        if shared(fn.random.coin_flip(dtype=types.BOOL)):
            corner = pixels(maximum(y - half, 0), maximum(x - half, 0))
            size = pixels(minimum(y + half, 1), minimum(x + half, 1)) - corner
            weight = 1 - size[0] * size[1] / float(side * side)
            values = paste(values, corner, size, part(partner, corner, size))
        else:
            values = weight * values + (1 - weight) * partner
        return values, weight * targets + (1 - weight) * reverse(targets)

    batches = run(augmented())
    return ((batch[:-1], batch[-1]) for batch in batches) if len(views) > 1 else batches


def decoded(data: Path):
    """All training images in memory, as u8 [N, 3, H, W], and their classes."""
    import torch
    from torchvision.transforms.v2 import functional

    (paths, labels), decode = files(data), decoder_of("torchvision")
    images = torch.empty((len(paths), 3, SIDE, SIDE), dtype=torch.uint8)
    for at, path in enumerate(paths):
        images[at] = functional.resize(decode(path), [SIDE, SIDE], antialias=True)
    return images, torch.tensor(labels)


def orders(count: int) -> Iterator:
    """Rows of batch after batch, a new order each epoch."""
    import torch

    while True:
        yield from torch.randperm(count).split(BATCH)


def ram_torch(data: Path) -> Iterator:
    """Everything decoded in memory, mixed with torch's operations."""
    (images, labels), mix = decoded(data), mix_of()
    return (mix(images.index_select(0, rows), labels[rows]) for rows in orders(len(images)))


def ram_compiled(data: Path) -> Iterator:
    """Everything decoded in memory, mixed by a kernel that torch.compile has fused."""
    import torch

    (images, labels), beta = decoded(data), torch.distributions.Beta(0.4, 0.4)
    scale, offset = affine()

    @torch.compile(dynamic=False, fullgraph=True)
    def fused(own, partner, weight):
        return (weight * own.float() + (1 - weight) * partner.float()) * scale + offset

    for rows in orders(len(images)):
        raw, shuffle, own = beta.sample((len(rows),)), torch.randperm(len(rows)), images.index_select(0, rows)
        weight = torch.maximum(raw, 1 - raw).view(-1, 1, 1, 1)
        yield fused(own, own.index_select(0, shuffle), weight), labels[rows], labels[rows[shuffle]], weight


DECODERS = ["torchvision", "torchcodec", "pil"]
DECODING = {**{f"dataloader-{decoder}": partial(dataloader, decoder=decoder) for decoder in DECODERS}, "dali-cpu": dali}
IN_MEMORY = {"ram-torch": ram_torch, "ram-compiled": ram_compiled}
# Each yields tuples: a batch's images, or a sequence of them where samples have several views, then its labels as the contender has them.
CONTENDERS: dict[str, Callable[[Path], Iterator]] = DECODING | IN_MEMORY
for name, views in RECIPES.items():
    CONTENDERS |= {f"{name}-dataloader-{decoder}": partial(recipe_dataloader, views=views, decoder=decoder) for decoder in DECODERS}
    CONTENDERS[f"{name}-dali-cpu"] = partial(recipe_dali, views=views)
    if views[0].policy.startswith(("rand-", "3a")):
        CONTENDERS[f"{name}-timm"] = partial(timm, recipe=views[0], prefetcher=False)
        CONTENDERS[f"{name}-timm-prefetcher"] = partial(timm, recipe=views[0], prefetcher=True)


def processes() -> list[int]:
    """This process and its workers."""
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children())]


def cpu_seconds() -> float:
    """Processor time of all processes so far."""
    fields = (Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in processes())
    return sum(int(stat[11]) + int(stat[12]) for stat in fields) / os.sysconf("SC_CLK_TCK")


def memory_mb() -> float:
    """Memory of all processes, what they share counted once."""
    lines = (Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in processes())
    return sum(int(line.split()[1]) for line in itertools.chain(*lines) if line.startswith("Pss:")) / 1000


def age() -> float:
    """Seconds since this process started."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def views_of(batch) -> list:
    """The views of a batch's samples, one element of each image read."""
    views = list(batch) if isinstance(batch, list | tuple) else [batch]
    for view in views:
        view[:, 0, 0, 0].sum()
    return views


def main() -> None:
    """Warms up, counts, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    batches = CONTENDERS[options.name](options.data)
    first, first_batch_s = next(batches)[0], age()
    # More than an epoch of what is in memory: a last batch of another length is compiled anew.
    for batch, *_ in itertools.islice(batches, 200 if options.name.startswith("ram") else 20):
        views_of(batch)
    images, start, cpu = 0, time.monotonic(), cpu_seconds()
    while time.monotonic() - start < options.seconds:
        batch, *_ = next(batches)
        images += len(views_of(batch)[0])
    seconds, cpu = time.monotonic() - start, cpu_seconds() - cpu
    figures = {
        "name": options.name,
        "batch": ", ".join(f"{view.dtype} {list(view.shape)}" for view in views_of(first)),
        "images_per_s": images / seconds,
        "cpu_ms_per_image": 1000 * cpu / images,
        "memory_mb": memory_mb(),
        "first_batch_s": first_batch_s,
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
