#!/usr/bin/env python3
"""Checks the views that `mixd replay` names against torchvision on Pillow, and `x` against the views, for random batches.

    scripts/check-recipes.py MIXD DATA [BATCHES] [--exact]

DATA is an image folder. For each of BATCHES (default 6) random places, and a recipe of each kind in turn, MIXD replays the batch. Each `view` must
be what torchvision's functions for PIL images give for the crop and flip that the batch names (without torchvision the same calls of Pillow are
made), and `x` must follow from the views, λ, boxes and partners (docs/spec/batches.md). With --exact, which a MIXD with libjpeg-turbo passes, views must be equal
to the bit. Needs Pillow up to 11.3 and numpy. Exits with 1 where a bound is passed.
"""
import json
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

try:
    from torchvision.transforms import functional as F
except ImportError:
    F = None

DTYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U32": np.uint32, "U64": np.uint64, "U8": np.uint8}
FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
# Another JPEG decoder differs by this much, in levels (docs/spec/golden.md).
MEAN_MAX, WORST_MAX = 0.6, 30
# Each recipe's options, and what is checked of its views: (mixd's options, size, interpolation, kind, argument).
CASES = [
    (["--recipe=torchvision-v1", "--size=112"], (112, 112), "bilinear", "box", None),
    (["--recipe=torchvision-v1", "--size=96x128", "--interpolation=bicubic", "--mixup=0.4", "--cutmix=1"], (96, 128), "bicubic", "box", None),
    (["--recipe=torchvision-v1", "--split=val", "--size=112"], (112, 112), "bilinear", "short", 128),
    (["--recipe=imagenette", "--pairing=second-batch", "--mixup=0.2"], (128, 128), "bilinear", "box", None),
    (["--recipe=imagenette", "--split=val"], (128, 128), "bilinear", "squash", 152),
    (["--crop=pad_crop:8,reflect", "--size=128", "--flip", "--pairing=roll"], (128, 128), "bilinear", "pad", (8, "reflect")),
    (["--crop=pad_crop:4", "--size=96", "--flip=0.3", "--pairing=reverse", "--lambda=per-pair"], (96, 96), "bilinear", "pad", (4, "constant")),
    (["--crop=short_center:70", "--size=96", "--interpolation=bicubic"], (96, 96), "bicubic", "short", 70),
]


def read_safetensors(path):
    data = Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors, metadata = {}, {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            metadata = entry
            continue
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def center(image, height, width):
    """torchvision's center_crop."""
    if F:
        return F.center_crop(image, [height, width])
    w, h = image.size
    if w < width or h < height:
        left, top = max(width - w, 0) // 2, max(height - h, 0) // 2
        border = (left, top, max(width - w + 1, 0) // 2, max(height - h + 1, 0) // 2)
        image = ImageOps.expand(image, border, 0)
        w, h = image.size
    top, left = round((h - height) / 2), round((w - width) / 2)
    return image.crop((left, top, left + width, top + height))


def view(image, kind, argument, size, interpolation, box, flip):
    """What torchvision makes of an image."""
    (height, width), (top, left, h, w), how = size, box, FILTERS[interpolation]
    if kind == "box":
        if F:
            image = F.resized_crop(image, top, left, h, w, [height, width], interpolation=F.InterpolationMode(interpolation))
        else:
            image = image.crop((left, top, left + w, top + h)).resize((width, height), how)
    elif kind == "pad":
        pad, mode = argument
        array = np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode)
        image = Image.fromarray(array[top + pad : top + pad + h, left + pad : left + pad + w])
    else:
        w, h = image.size
        if kind == "squash":
            image = image.resize((argument, argument), how)
        else:
            short, long = min(w, h), max(w, h)
            new_long = int(argument * long / short)
            image = image.resize((argument, new_long) if w <= h else (new_long, argument), how)
        image = center(image, height, width)
    if flip:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    return np.asarray(image).transpose(2, 0, 1)


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--exact"]
    exact = len(arguments) < len(sys.argv) - 1
    mixd, data = arguments[0], Path(arguments[1])
    count = int(arguments[2]) if len(arguments) > 2 else 6
    assert tuple(map(int, PIL.__version__.split(".")[:2])) <= (11, 3), f"Pillow is {PIL.__version__}: later ones have another order of passes"
    print(f"Pillow {PIL.__version__}, torchvision's functions: {'yes' if F else 'no'}")
    rng = random.Random(1)
    for nth in range(count):
        options, size, interpolation, kind, argument = CASES[nth % len(CASES)]
        split = "val" if "--split=val" in options else "train"
        files = sorted(data.glob(f"**/{split}/*/*.JPEG"), key=lambda p: str(p.relative_to(data)).encode())
        epoch, seed = rng.randrange(50), rng.randrange(1000)
        index = rng.randrange(-(-len(files) // 32))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "batch.safetensors")
            place = [f"--epoch={epoch}", f"--batch={index}", f"--seed={seed}", "--batch-size=32"]
            run = [mixd, "replay", f"--data={data}", *place, *options, f"--out={out}"]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
            t, metadata = read_safetensors(out)
        recipe = json.loads(metadata["recipe"])
        assert len(recipe) == len(t["x"]) == len(t["view"])
        mean_worst = worst = 0.0
        for row, named in enumerate(recipe):
            assert list(t["crop"][row]) == named["crop"] and bool(t["flip"][row]) == named["flip"]
            assert named["ops"] == [] and named["erase"] == []
            image = Image.open(files[t["sample_id"][row]]).convert("RGB")
            expected = view(image, kind, argument, size, interpolation, named["crop"], named["flip"])
            error = np.abs(t["view"][row].astype(int) - expected)
            mean_worst, worst = max(mean_worst, error.mean()), max(worst, int(error.max()))
        if worst and exact or mean_worst > MEAN_MAX or worst > WORST_MAX:
            sys.exit(f"{' '.join(options)}: views differ from torchvision's: worst image's mean {mean_worst:.3f}, worst value {worst}")
        check_mix(t, options)
        print(f"{' '.join(options)}: epoch {epoch} batch {index}: {len(recipe)} views, worst value off by {worst}")


def check_mix(t, options):
    """`x` follows from the views where partners are of this batch."""
    lesson = not any(option.startswith("--recipe") for option in options)
    mean, std = ([0.47, 0.48, 0.45], [0.29, 0.28, 0.30]) if lesson else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (mean, std))
    x = (t["view"].astype(np.float32) / np.float32(255) - mean) / std
    for row, (lam, partner) in enumerate(zip(t["lambda"], t["partner"])):
        if partner < 0:
            continue
        top, left, height, width = t["cut"][row]
        if height * width:
            expected = x[row].copy()
            expected[:, top : top + height, left : left + width] = x[partner][:, top : top + height, left : left + width]
            area = 1 - height * width / (x.shape[2] * x.shape[3])
            assert abs(lam - area) < 1e-6, f"row {row}: λ is {lam}, and its box leaves {area}"
        elif t["cut"].any() and lam == 1:
            # An empty box.
            expected = x[row]
        else:
            expected = lam * x[row] + (np.float32(1) - lam) * x[partner]
        off = np.abs(t["x"][row] - expected).max()
        # A few roundings of values up to 2.7: the mixer's order of operations is another.
        assert off <= 2e-6, f"row {row}: x is off by {off}"


main()
