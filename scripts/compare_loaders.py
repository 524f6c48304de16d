#!/usr/bin/env python3
"""One contender of `make compare`, in a process of its own: prints one line of JSON.

Everyone does the same work: images of train/ in a new order each epoch, batches of 64, 128x128 bilinear with antialiasing, f32 NCHW,
normalised, mixed with a shuffle of the batch and a lambda per image from Beta(0.4, 0.4) folded. Those whose name begins with `recipe` make random
resized crops of 224x224 (area 0.08 to 1, aspect ratio 3/4 to 4/3) and flips instead, normalised with ImageNet's mean and std, unmixed. The consumer reads one element of each image.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BATCH, SIDE, WORKERS = 64, 128, 2
MEAN, STD = (0.47, 0.48, 0.45), (0.29, 0.28, 0.30)


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


def dataloader(data: Path, decoder: str) -> Iterator:
    """torch's DataLoader: decoding and resizing in workers, mixing in the consumer, where it is fastest."""
    import numpy
    import torch
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import functional

    # More threads take the workers' cores.
    torch.set_num_threads(1)
    paths, labels = files(data)

    class Images(torch.utils.data.Dataset):
        """The training images as u8."""

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, at: int):
            if decoder == "pil":
                image = Image.open(paths[at]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                return torch.from_numpy(numpy.array(image)).permute(2, 0, 1), labels[at]
            image = decode_jpeg(read_file(paths[at]), mode=ImageReadMode.RGB)
            return functional.resize(image, [SIDE, SIDE], antialias=True), labels[at]

    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, prefetch_factor=4)
    mix = mix_of()
    while True:
        yield from (mix(*batch)[0] for batch in loader)


def dali(data: Path) -> Iterator:
    """NVIDIA DALI on the CPU, with mixing in its pipeline."""
    import numpy
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

    pipeline = mixed()
    pipeline.build()
    while True:
        yield numpy.from_dlpack(pipeline.run()[0].as_tensor())


IMAGENET_MEAN, IMAGENET_STD, RECIPE_SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224


def recipe_dataloader(data: Path, decoder: str) -> Iterator:
    """torch's DataLoader with torchvision's transforms as its references have them: on PIL images, or on u8 tensors."""
    import torch
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    paths, labels = files(data)
    augment = [v2.RandomResizedCrop(RECIPE_SIDE, antialias=True), v2.RandomHorizontalFlip()]
    to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform = v2.Compose([*augment, *to_float])

    class Images(torch.utils.data.Dataset):
        """The training images, transformed."""

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, at: int):
            if decoder == "pil":
                return transform(Image.open(paths[at]).convert("RGB")), labels[at]
            return transform(decode_jpeg(read_file(paths[at]), mode=ImageReadMode.RGB)), labels[at]

    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, prefetch_factor=4)
    while True:
        yield from (images for images, _ in loader)


def recipe_dali(data: Path) -> Iterator:
    """NVIDIA DALI on the CPU, decoding only the crop."""
    import numpy
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None)
    def cropped():
        encoded, labels = fn.readers.file(file_root=str(data / "train"), random_shuffle=True, initial_fill=4096)
        area, aspect = [0.08, 1.0], [3 / 4, 4 / 3]
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=area, random_aspect_ratio=aspect, num_attempts=10
        )
        images = fn.resize(images, size=(RECIPE_SIDE, RECIPE_SIDE), interp_type=types.INTERP_TRIANGULAR, antialias=True)
        scale = lambda values: [255 * value for value in values]
        mean, std = scale(IMAGENET_MEAN), scale(IMAGENET_STD)
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std, mirror=mirror), labels

    pipeline = cropped()
    pipeline.build()
    while True:
        yield numpy.from_dlpack(pipeline.run()[0].as_tensor())


def decoded(data: Path):
    """All training images in memory, as u8 [N, 3, H, W], and their classes."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import functional

    paths, labels = files(data)
    images = torch.empty((len(paths), 3, SIDE, SIDE), dtype=torch.uint8)
    for at, path in enumerate(paths):
        images[at] = functional.resize(decode_jpeg(read_file(path), mode=ImageReadMode.RGB), [SIDE, SIDE], antialias=True)
    return images, torch.tensor(labels)


def orders(count: int) -> Iterator:
    """Rows of batch after batch, a new order each epoch."""
    import torch

    while True:
        yield from torch.randperm(count).split(BATCH)


def ram_torch(data: Path) -> Iterator:
    """Everything decoded in memory, mixed with torch's operations."""
    (images, labels), mix = decoded(data), mix_of()
    return (mix(images.index_select(0, rows), labels[rows])[0] for rows in orders(len(images)))


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
        _ = labels[rows], labels[rows[shuffle]]
        yield fused(own, own.index_select(0, shuffle), weight)


CONTENDERS: dict[str, Callable[[Path], Iterator]] = {
    "dataloader-torchvision": lambda data: dataloader(data, "torchvision"),
    "dataloader-pil": lambda data: dataloader(data, "pil"),
    "dali-cpu": dali,
    "recipe-dataloader-torchvision": lambda data: recipe_dataloader(data, "torchvision"),
    "recipe-dataloader-pil": lambda data: recipe_dataloader(data, "pil"),
    "recipe-dali-cpu": recipe_dali,
    "ram-torch": ram_torch,
    "ram-compiled": ram_compiled,
}


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


def main() -> None:
    """Warms up, counts, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    batches = CONTENDERS[options.name](options.data)
    first_batch_s = next(batches) is not None and age()
    # More than an epoch of what is in memory: a last batch of another length is compiled anew.
    for batch in itertools.islice(batches, 200 if options.name.startswith("ram") else 20):
        batch[:, 0, 0, 0].sum()
    images, start, cpu = 0, time.monotonic(), cpu_seconds()
    while time.monotonic() - start < options.seconds:
        batch = next(batches)
        batch[:, 0, 0, 0].sum()
        images += len(batch)
    seconds, cpu = time.monotonic() - start, cpu_seconds() - cpu
    figures = {
        "name": options.name,
        "images_per_s": images / seconds,
        "cpu_ms_per_image": 1000 * cpu / images,
        "memory_mb": memory_mb(),
        "first_batch_s": first_batch_s,
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
