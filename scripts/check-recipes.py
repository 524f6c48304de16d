#!/usr/bin/env python3
"""Checks the views that `mixd replay` names against torchvision on Pillow, and `x` against the views, for random batches.

    scripts/check-recipes.py MIXD DATA [BATCHES] [--exact] [--full]

DATA is an image folder. Of every preset, and of recipes of each kind, MIXD replays BATCHES (default 1; 40 with --full) random batches. Each `view` must
be what torchvision's functions for PIL images and Pillow give for the crop, the flip and the operations that the batch names (without torchvision the
same calls of Pillow are made), and `x` must follow from the views, erased boxes, λ, CutMix's boxes and partners (docs/spec/batches.md). With --exact, which a MIXD with libjpeg-turbo passes, views must be equal
to the bit. Needs Pillow up to 11.3 and numpy. Exits with 1 where a bound is passed.
"""
import json
import random
import struct
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from statistics import NormalDist

import numpy as np
import PIL
from PIL import Image, ImageOps
from pillow_ops import operate

try:
    from torchvision.transforms import functional as F
except ImportError:
    F = None

DTYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U32": np.uint32, "U64": np.uint64, "U8": np.uint8}
FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
# Another JPEG decoder differs by this much, in levels (docs/spec/golden.md).
MEAN_MAX, WORST_MAX = 0.6, 30
# Options of recipes that no preset has.
CASES = [
    ["--recipe=torchvision-v1", "--size=96x128", "--interpolation=bicubic", "--mixup=0.4", "--cutmix=1"],
    ["--recipe=imagenette", "--pairing=second-batch", "--mixup=0.2"],
    ["--crop=pad_crop:8,reflect", "--size=128", "--flip", "--pairing=roll"],
    ["--crop=pad_crop:4", "--size=96", "--flip=0.3", "--pairing=reverse", "--lambda=per-pair"],
    ["--crop=short_center:70", "--size=96", "--interpolation=bicubic"],
    ["--recipe=imagenette", "--policy=auto-augment", "--warp=bicubic", "--fill=9,99,199", "--erase=0.5,rand,3", "--cutmix=1"],
    ["--recipe=imagenette", "--policy=rand-augment:3,15", "--size=97x61", "--erase=0.9,pixel,2,after-mix", "--mixup=0.3"],
    ["--size=112", "--color-jitter=0.4,0.4,0.2,0.1,0.8", "--grayscale=0.2", "--blur=0.5,0.1,2", "--solarize=0.2", "--flip", "--erase=0.5"],
    ["--flip", "--erase=0.6,pixel", "--dtype=f32"],
    ["--recipe=dino", "--size=96", "--views-per-sample=4", "--mixup=0.2"],
    ["--recipe=deit", "--size=96", "--grow=64,0,50"],
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


def view(image, spec, row):
    """What torchvision makes of an image."""
    (height, width), crop, how = spec["size"], spec["crop"], FILTERS[spec["interpolation"]]
    top, left, h, w = row["crop"]
    if crop["kind"] == "random_resized_crop":
        if F:
            image = F.resized_crop(image, top, left, h, w, [height, width], interpolation=F.InterpolationMode(spec["interpolation"]))
        else:
            image = image.crop((left, top, left + w, top + h)).resize((width, height), how)
    elif crop["kind"] == "pad_crop":
        pad = crop["pad"]
        array = np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), crop["mode"])
        image = Image.fromarray(array[top + pad : top + pad + h, left + pad : left + pad + w])
    elif crop["kind"] == "squash":
        image = image.resize((width, height), how)
    else:
        w, h = image.size
        resize = crop["resize"]
        if crop["kind"] == "squash_center":
            image = image.resize((resize, resize), how)
        else:
            new_long = int(resize * max(w, h) / min(w, h))
            image = image.resize((resize, new_long) if w <= h else (new_long, resize), how)
        image = center(image, height, width)
    if row["flip"]:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    for operation in row["ops"]:
        image = operate(image, *operation, **spec["warping"])
    return np.asarray(image).transpose(2, 0, 1)


def described(mixd, options):
    """What the options of a feed ask of its views, of the recipe that they name and by themselves."""
    given = dict(option.removeprefix("--").split("=", 1) for option in options if "=" in option)
    recipe = tomllib.loads(subprocess.run([mixd, "recipe", given.get("recipe", "lesson")], check=True, capture_output=True, text=True).stdout)
    part = recipe[given.get("split", "train")]
    train = recipe["train"]
    size, text = part["size"], given.get("size")
    if text:
        size = [int(side) for side in text.split("x")] * (1 if "x" in text else 2)
    elif isinstance(size, int):
        size = [size, size]
    crop = part["crop"]
    if "crop" in given:
        kind, _, arguments = given["crop"].partition(":")
        arguments = arguments.split(",")
        crop = {"kind": kind, "resize": int(arguments[0])} if "center" in kind else {"kind": kind, "pad": int(arguments[0]), "mode": (*arguments, "constant")[1]}
    warping = train["augment"]["warping"]
    fill = [int(value) for value in given["fill"].split(",")] if "fill" in given else warping["fill"]
    erase = (given["erase"].split(",") + ["const"])[1:] if "erase" in given else [train["erase"]["mode"], "1", train["erase"]["when"]]
    return {
        "size": size, "crop": crop, "interpolation": given.get("interpolation", part["interpolation"]),
        "warping": {"warp": given.get("warp", warping["filter"]), "fill": fill},
        "erase": (erase[0], "after-mix" in erase), "mean": recipe["mean"], "std": recipe["std"],
    }  # fmt: skip


NOISE = np.array([NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)], np.float32)


def noise(key, index):
    """The numbers of N(0, 1) at these indices of an erasure (docs/spec/batches.md#erased)."""
    h = index.astype(np.uint32) * np.uint32(0x9E3779B1) ^ np.uint32(key)
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    h = (h ^ h >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return NOISE[(h ^ h >> np.uint32(16)) >> np.uint32(20)]


def erased(image, row, mode):
    """A normalized image with its boxes erased."""
    image = image.copy()
    index = np.arange(image.size).reshape(image.shape)
    for nth, (top, left, height, width) in enumerate(row["erase"]):
        box = np.s_[:, top : top + height, left : left + width]
        if mode == "const":
            image[box] = 0
        elif mode == "rand":
            image[box] = noise(row["noise"], 3 * nth + np.arange(3)).reshape(3, 1, 1)
        else:
            image[box] = noise(row["noise"], index[box])
    return image


def main():
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    exact = "--exact" in sys.argv
    mixd, data = arguments[0], Path(arguments[1])
    count = int(arguments[2]) if len(arguments) > 2 else 40 if "--full" in sys.argv else 1
    assert tuple(map(int, PIL.__version__.split(".")[:2])) <= (11, 3), f"Pillow is {PIL.__version__}: later ones have another order of passes"
    print(f"Pillow {PIL.__version__}, torchvision's functions: {'yes' if F else 'no'}")
    listed = subprocess.run([mixd, "recipe"], check=True, capture_output=True, text=True).stdout
    presets = [line.split()[0] for line in listed.splitlines()]
    assert "torchvision-v2" in presets
    rng = random.Random(1)
    for options in CASES + [[f"--recipe={name}", *split] for name in presets for split in ([], ["--split=val"])]:
        spec = described(mixd, options)
        worst = max(check(mixd, data, options, spec, rng, exact) for _ in range(count))
        print(f"{' '.join(options)}: {count} batches, worst value off by {worst}")


def check(mixd, data, options, spec, rng, exact):
    """Checks a random batch; gives the largest difference of a view's value."""
    split = "val" if "--split=val" in options else "train"
    files = sorted(data.glob(f"**/{split}/*/*.JPEG"), key=lambda p: str(p.relative_to(data)).encode())
    epoch, seed = rng.randrange(50), rng.randrange(1000)
    # An epoch of repeats is cut to a multiple of 256 samples.
    index = rng.randrange((len(files) // 256 * 256 or len(files)) // 32)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "batch.safetensors")
        place = [f"--epoch={epoch}", f"--batch={index}", f"--seed={seed}", "--batch-size=32"]
        run = [mixd, "replay", f"--data={data}", *place, *options, f"--out={out}"]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        t, metadata = read_safetensors(out)
    if "recipe" not in metadata:
        return 0  # Squashed and nothing else: check-replay.py checks such feeds.
    recipe = json.loads(metadata["recipe"])
    assert len(recipe) == len(t["x"]) == len(t["view"])
    mean_worst = worst = 0.0
    for row, named in enumerate(recipe):
        assert list(t["crop"][row]) == named["crop"] and bool(t["flip"][row]) == named["flip"]
        image = Image.open(files[t["sample_id"][row]]).convert("RGB")
        # Views may grow with the epochs.
        made = view(image, spec | {"size": t["view"].shape[2:]}, named)
        error = np.abs(t["view"][row].astype(int) - made)
        # Operations such as equalize make much of another decoder's small differences.
        if exact or not named["ops"]:
            mean_worst, worst = max(mean_worst, error.mean()), max(worst, int(error.max()))
    if worst and exact or mean_worst > MEAN_MAX or worst > WORST_MAX:
        sys.exit(f"{' '.join(options)}: views differ from Pillow's: worst image's mean {mean_worst:.3f}, worst value {worst}")
    check_mix(t, recipe, spec)
    return worst


def check_mix(t, recipe, spec):
    """`x` follows from the views where partners are of this batch."""
    mean, std = (np.array(spec[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
    x = (t["view"].astype(np.float32) / np.float32(255) - mean) / std
    mode, after = spec["erase"]
    if not after:
        x = np.stack([erased(image, row, mode) for image, row in zip(x, recipe)])
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
        if after:
            expected = erased(expected, recipe[row], mode)
        off = np.abs(t["x"][row] - expected).max()
        # A few roundings of values up to 3.7: the mixer's order of operations is another.
        assert off <= 2e-6, f"row {row}: x is off by {off}"


if __name__ == "__main__":
    main()
