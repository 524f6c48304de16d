#!/usr/bin/env python3
"""Times Pillow on the views and operations of `cargo bench --bench operations`, and sets mixd's own times beside them.

    PYTHONPATH=.python scripts/pillow-times.py [--criterion target/criterion] [--seconds 20]

Both sides run in one thread and keep freed memory. Pillow's time is the median of rounds over 16 views, each round with all operations;
mixd's is criterion's median, which includes about 4 µs for copying the view. `identity` is left out: Pillow copies nothing.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import PIL
from compare import ALLOCATOR
from measure import head
from PIL import Image
from pillow_ops import FILTERS, operate

SAMPLES = Path(__file__).parent.parent / "sample-data/train"
VIEWS, SIDE, FILL = 16, 224, (124, 116, 104)
PLAIN = ["autocontrast", "equalize", "invert", "grayscale"]
WITH_ARGUMENT = {"brightness": 1.3, "contrast": 1.3, "saturation": 1.3, "sharpness": 1.3, "hue": 0.1, "posterize": 4, "solarize": 128}
WITH_ARGUMENT |= {"solarize_add": 50, "gaussian_blur": 2.0}
WARPS = {"rotate": 17.0, "shear_x": 0.2, "shear_y": 0.2, "translate_x": 9.5, "translate_y": 9.5}
# The benchmark's names; the operations of each, with argument and filter.
BENCHMARKS = {
    **{name: [(name, None, "nearest")] for name in PLAIN},
    **{name: [(name, argument, "nearest")] for name, argument in WITH_ARGUMENT.items()},
    "gaussian_blur 0.7": [("gaussian_blur", 0.7, "nearest")],
    **{f"{name} {filter}": [(name, argument, filter)] for filter in FILTERS for name, argument in WARPS.items()},
    "color jitter": [(name, argument, "nearest") for name, argument in zip(WITH_ARGUMENT, (0.8, 1.2, 1.1))] + [("hue", 0.05, "nearest")],
}


def views() -> list[Image.Image]:
    """The first image of each class, squashed; then the second, as many as are needed."""
    classes = [sorted(path.iterdir()) for path in sorted(SAMPLES.iterdir())]
    paths = [classes[nth % len(classes)][nth // len(classes)] for nth in range(VIEWS)]
    return [Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for path in paths]


def microseconds(operations: list[tuple], images: list[Image.Image]) -> float:
    """Mean time of the operations on an image."""
    start = time.perf_counter()
    for image in images:
        for name, argument, filter in operations:
            image = operate(image, name, argument, filter, FILL)
    return (time.perf_counter() - start) * 1e6 / len(images)


def mixd_microseconds(criterion: Path, name: str) -> float | None:
    """Criterion's latest median, if it has one."""
    estimates = criterion / "operations" / name / "new/estimates.json"
    return json.loads(estimates.read_text())["median"]["point_estimate"] / 1000 if estimates.exists() else None


def main() -> None:
    """Rounds, then the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--criterion", type=Path, default=Path("target/criterion"), help="criterion's output folder")
    parser.add_argument("--seconds", type=float, default=20, help="for all rounds; the last one is completed")
    options = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():
        # glibc reads these when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    images, rounds, end = views(), [], time.monotonic() + options.seconds
    while time.monotonic() < end:
        rounds.append({name: microseconds(operations, images) for name, operations in BENCHMARKS.items()})
    print(head(f"scripts/pillow-times.py --seconds {options.seconds:g}"), f"Pillow {PIL.__version__}; {len(rounds)} rounds", sep="; ")
    print("\n| operation | Pillow µs | mixd µs | ratio |\n| --- | --- | --- | --- |")
    for name in BENCHMARKS:
        pillow, mixd = statistics.median(times[name] for times in rounds), mixd_microseconds(options.criterion, name)
        print(f"| {name} | {pillow:.1f} | " + (f"{mixd:.1f} | {pillow / mixd:.1f} |" if mixd else "– | – |"))


if __name__ == "__main__":
    main()
