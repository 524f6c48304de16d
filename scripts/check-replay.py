#!/usr/bin/env python3
"""Checks `mixd replay` against Pillow and the formula, for random batches.

    scripts/check-replay.py MIXD DATA [BATCHES]

DATA is an image folder. For each of BATCHES (default 5) random places it lets MIXD replay the batch, makes the same one
from the file's sample ids, partners and λ with Pillow (decode, BILINEAR, and mixing in numpy's f32), and compares.
Needs Pillow up to 11.3 (later versions changed the order of the passes) and numpy. Exits with 1 where a bound is passed.
"""
import json
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

MEAN = np.array([0.47, 0.48, 0.45], np.float32).reshape(3, 1, 1)
STD = np.array([0.29, 0.28, 0.30], np.float32).reshape(3, 1, 1)
DTYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U32": np.uint32, "U64": np.uint64, "U8": np.uint8}
# End to end with another JPEG decoder: mean 0.5 and at most 6 levels an image (reference, tolerances), in units of x.
LEVEL = 1 / 255 / 0.28
MEAN_MAX, WORST_MAX = 0.5 * LEVEL, 6 * LEVEL


def read_safetensors(path):
    data = Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def normalised(path):
    rgb = Image.open(path).convert("RGB").resize((128, 128), Image.BILINEAR)
    u = np.asarray(rgb).transpose(2, 0, 1).astype(np.float32)
    return (u / np.float32(255) - MEAN) / STD


def main():
    mixd, data = sys.argv[1], Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    files = sorted((p for p in data.glob("**/train/*/*.JPEG")), key=lambda p: str(p.relative_to(data)).encode())
    classes = sorted({p.parent.name for p in files}, key=str.encode)
    rng = random.Random(0)
    for _ in range(count):
        epoch, seed = rng.randrange(50), rng.randrange(1000)
        batches = -(-len(files) // 64)
        index = rng.randrange(batches)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "batch.safetensors")
            options = [f"--epoch={epoch}", f"--batch={index}", f"--seed={seed}"]
            subprocess.run([mixd, "replay", f"--data={data}", *options, f"--out={out}"], check=True)
            t = read_safetensors(out)
        assert (t["epoch"][0], t["index"][0], t["batches"][0]) == (epoch, index, batches)
        mean_worst = worst = 0.0
        for row, lam in enumerate(t["lambda"]):
            own, partner = files[t["sample_id"][row]], files[t["partner_id"][row]]
            assert t["sample_id"][t["partner"][row]] == t["partner_id"][row]
            assert classes[t["label_a"][row]] == own.parent.name
            assert classes[t["label_b"][row]] == partner.parent.name
            assert 0.5 <= lam <= 1
            expected = lam * normalised(own) + (np.float32(1) - lam) * normalised(partner)
            error = np.abs(t["x"][row] - expected)
            mean_worst, worst = max(mean_worst, error.mean()), max(worst, error.max())
        print(
            f"epoch {epoch} batch {index} seed {seed}: {len(t['lambda'])} images, "
            f"worst image's mean error {mean_worst / LEVEL:.3f} levels, worst value {worst / LEVEL:.2f} levels"
        )
        if mean_worst > MEAN_MAX or worst > WORST_MAX:
            sys.exit("mixd: replay differs from Pillow and the formula by more than the bounds")


main()
