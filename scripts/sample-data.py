#!/usr/bin/env python3
"""Picks sample-data/ out of the Imagenette archive: the same files, byte for byte, on every run.

Usage: scripts/sample-data.py [imagenette2-160.tgz]

A class gives 20 train and 5 val images, those whose size in bytes is nearest the median of their folder; the farthest of
them makes way for the grayscale image nearest the median, where the folder has one and none was picked.
"""

import io
import shutil
import statistics
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = {"train": 20, "val": 5}
BYTES_MAX = 2_500_000


def is_gray(jpeg: bytes) -> bool:
    """Whether the frame header (SOF, T.81 B.2.2) states one component."""
    stream = io.BytesIO(jpeg[2:])
    while True:
        marker, length = stream.read(2), int.from_bytes(stream.read(2), "big")
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            return stream.read(6)[5] == 1
        stream.seek(length - 2, io.SEEK_CUR)


def pick(images: dict[str, bytes], count: int) -> dict[str, bytes]:
    median = statistics.median(len(jpeg) for jpeg in images.values())
    near = sorted(images, key=lambda name: (abs(len(images[name]) - median), name))
    gray = next((name for name in near if is_gray(images[name])), None)
    names = near[:count]
    if gray and gray not in names:
        names[-1] = gray
    return {name: images[name] for name in names}


def main() -> None:
    archive = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "../shared/data/imagenette2-160.tgz"
    folders = defaultdict(dict)
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".JPEG"):
                _, split, wnid, name = member.name.split("/")
                folders[split, wnid][name] = tar.extractfile(member).read()

    picked = {
        f"{split}/{wnid}/{name}": jpeg
        for (split, wnid), images in sorted(folders.items())
        for name, jpeg in pick(images, WANTED[split]).items()
    }
    total = sum(map(len, picked.values()))
    if total > BYTES_MAX:
        sys.exit(f"sample-data: {total} bytes picked, {BYTES_MAX} allowed (lower WANTED)")

    for split in WANTED:
        shutil.rmtree(ROOT / "sample-data" / split, ignore_errors=True)
    for path, jpeg in picked.items():
        path = ROOT / "sample-data" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    grays = sum(map(is_gray, picked.values()))
    print(f"sample-data: {len(picked)} images, {total} bytes, {grays} grayscale")


if __name__ == "__main__":
    main()
