#!/usr/bin/env python3
"""`make compare`: mixd beside what its users would pick instead; the same work, fresh processes, one after the other in each round."""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

from compare_loaders import BATCH, CONTENDERS, DECODING, IN_MEMORY, RECIPES
from measure import bench, folder, head, report, run

HOME = Path(".compare")
# Pillow 11.3 is the last one whose posterize takes 0 bits, as timm's policy does.
REQUIREMENTS = ["torch==2.11.0", "torchvision==0.26.0", "torchcodec==0.17.0", "timm==1.0.31", "pillow==11.3.0", "numpy==2.4.6",
                "nvidia-dali-cuda130==2.4.0", "nvidia-nvimgcodec-cu13[all]==0.9.0.20"]
# glibc keeps memory instead of giving it back and clearing it anew: half of the torch contenders' time otherwise.
ALLOCATOR = {"MALLOC_TOP_PAD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
# Recipes that are several feeds over the same samples, and how many views of a sample each has.
FEEDS = {"dino": {"dino": 2, "dino-local": 8}}
# Name, views of a sample and options of `mixd bench` for each feed, and whom they are set against.
OURS = {
    "mixd, decoding": ([(1, ["--cache", "off"])], DECODING),
    "mixd, f32": ([(1, ["--dtype", "f32"])], IN_MEMORY),
    "mixd, bf16": ([(1, ["--dtype", "bf16"])], []),
    "mixd, u8": ([(1, ["--dtype", "u8"])], []),
}


def recipe(name: str, *more: str) -> list[tuple[int, list[str]]]:
    """Feeds whose batches have as many samples as the contenders'."""
    feeds = FEEDS.get(name, {name: 1})
    return [(views, ["--recipe", feed, "--batch-size", str(BATCH * views), *more]) for feed, views in feeds.items()]


# Contenders take each image once an epoch; what it costs them does not change where a recipe repeats it, since they decode it anew.
once = ("--repeats", "1")
for name in RECIPES:
    OURS |= {
        f"mixd, {name}, decoding": (recipe(name, *once, "--cache", "off"), [other for other in CONTENDERS if other.startswith(f"{name}-")]),
        f"mixd, {name}, decoding, bf16": (recipe(name, *once, "--cache", "off", "--dtype", "bf16"), []),
        f"mixd, {name}, stored": (recipe(name, *once), []),
        f"mixd, {name}, stored, bf16": (recipe(name, *once, "--dtype", "bf16"), []),
    }
for name in ("torchvision-v2", "deit", "deit3"):
    OURS[f"mixd, {name} with its repeats, decoding"] = (recipe(name, "--cache", "off"), [])


def python() -> Path:
    """The interpreter of an environment of the contenders' own, made if it is not there or has other versions."""
    stamp, wanted = HOME / "venv" / "requirements", "\n".join(REQUIREMENTS)
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"installing {', '.join(REQUIREMENTS)} (5 GB, once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", HOME / "venv"], check=True)
        subprocess.run([HOME / "venv/bin/pip", "install", "--quiet", *REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    return HOME / "venv/bin/python"


def ours(mixd: Path, data: Path, seconds: float, feeds: list[tuple[int, list[str]]]) -> dict:
    """mixd's figures under the names of the others'.

    Feeds are measured one after the other, and what a sample costs is added up: memory, too, though one daemon stores images once for all.
    """
    figures = [(views, bench(mixd, data, seconds, options, **ALLOCATOR)) for views, options in feeds]
    cpu_ms = lambda feed: feed["cpu_ms_per_1000_images"] / 1000 + 1000 * feed["trainer_cpu_seconds"] / feed["images"]
    return {
        "images_per_s": 1 / sum(views / feed["images_per_s"] for views, feed in figures),
        "cpu_ms_per_image": sum(views * cpu_ms(feed) for views, feed in figures),
        "memory_mb": sum(feed["peak_rss_mb"] for _, feed in figures),
        "first_batch_s": sum(feed["first_batch_ms"] / 1000 for _, feed in figures),
    }


def table(rounds: list[dict]) -> list[list[str]]:
    """A row a contender: medians, and mixd's ratio to it in each round as median and range."""
    against = {other: our for our, (_, others) in reversed(OURS.items()) for other in others}
    rows = [["", "images/s", "CPU ms an image", "memory MB", "first batch s", "mixd is faster by"]]
    for name in rounds[0]:
        results = [of[name] for of in rounds]
        if errors := [result["error"] for result in results if "error" in result]:
            rows.append([name, errors[0].splitlines()[-1], "", "", "", ""])
            continue
        median = lambda key: statistics.median(result[key] for result in results)
        ratios = [of[against[name]]["images_per_s"] / of[name]["images_per_s"] for of in rounds] if against.get(name) in rounds[0] else []
        times = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})" if ratios else ""
        figures = [f"{median('images_per_s'):,.0f}", f"{median('cpu_ms_per_image'):.3f}", f"{median('memory_mb'):,.0f}"]
        rows.append([name, *figures, f"{median('first_batch_s'):.2f}", times])
    return rows


def main() -> None:
    """Rounds, then the table on standard output and in files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mixd", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", metavar="PATTERN", default="", help="a regular expression: only rows whose names it is found in")
    options = parser.parse_args()
    interpreter, data, rounds = python(), folder(options.data, HOME), []
    loaders = Path(__file__).with_name("compare_loaders.py")
    for nth in range(options.rounds):
        print(f"round {nth + 1} of {options.rounds}", file=sys.stderr)
        results = {}
        for name in filter(re.compile(options.only).search, CONTENDERS):
            results[name] = run([interpreter, loaders, name, "--data", data, "--seconds", str(options.seconds)], name, **ALLOCATOR)
        for name in filter(re.compile(options.only).search, OURS):
            results[name] = ours(options.mixd, data, options.seconds, OURS[name][0])
        rounds.append(results)
    command = f"make compare DATA={options.data.name} ROUNDS={options.rounds} SECONDS={options.seconds:g}"
    rows = f", rows of `{options.only}`" if options.only else ""
    report("compare", options.out, f"{head(command)}{rows}; {', '.join(REQUIREMENTS)}", table(rounds), rounds)


if __name__ == "__main__":
    main()
