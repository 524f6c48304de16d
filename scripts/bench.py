#!/usr/bin/env python3
"""`make bench`: mixd beside the machine's ceilings, and what it costs against each thing that its users choose: a table, curves, JSON."""

import argparse
import os
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy
from PIL import Image

from measure import bench, folder, head, report

HOME = Path(".bench")
# Rows of the table, and their options.
TABLE = {
    "decoding": ["--cache", "off"],
    "decoding, 1 worker": ["--cache", "off", "--workers", "1"],
    "f32": [],
    "f32, 2 slots": ["--slots", "2"],
    "f32, 1 worker": ["--workers", "1"],
    "f32, every byte read": ["--touch", "all"],
    "f32, 2 trainers": ["--trainers", "2"],
    "f32, 4 trainers": ["--trainers", "4"],
    "f32, 4 trainers, one feed": ["--trainers", "4", "--share", "bench"],
    "f32, CutMix": ["--cutmix", "1"],
    "f32, flipped": ["--flip"],
    "f32, with digests": ["--digest"],
    "f16": ["--dtype", "f16"],
    "bf16": ["--dtype", "bf16"],
    "u8": ["--dtype", "u8"],
}
COLUMNS = {
    "images/s": lambda f: f"{f['images_per_s']:,.0f}",
    "share of the ceiling": lambda f: f"{f['share_of_ceiling']:.2f} ({f['ceiling']['kind']})",
    "CPU ms per 1,000": lambda f: f"{f['cpu_ms_per_1000_images']:.1f}",
    "hand-off µs (50 %, 99 %)": lambda f: pair(f["handoff_us_p50"], f["handoff_us_p99"]),
    "a bare wake-up µs": lambda f: pair(f["ceiling"]["wake_us_p50"], f["ceiling"]["wake_us_p99"]),
    "first batch ms": lambda f: f"{f['first_batch_ms']:.0f}",
    "attach ms": lambda f: f"{f['attach_ms']:.1f}",
    "memory MB (store, rings)": lambda f: f"{f['peak_rss_mb']:.0f} ({f['store_mb']:.0f}, {f['rings_mb']:.0f})",
    "bottleneck": lambda f: f["bottleneck"],
}
DECODING = ["--cache", "off"]
# How often each point of a curve is measured.
PASSES = 3


def pair(median: float | None, last: float | None) -> str:
    """Two quantiles, where anything was counted."""
    return "-" if median is None else f"{median:.0f}, {last:.0f}"


def derived(data: Path, kind: str) -> Path:
    """Where a data set lies that was made of another: a folder for each original."""
    return HOME / f"{data.resolve().as_posix().strip('/').replace('/', '-')}-{kind}"


def upscaled(data: Path, side: int, count: int) -> Path:
    """A data set of some of the images with shorter side `side`; noise gives enlarged ones about as many bytes as photographs have."""
    to = derived(data, f"{side}px-{count}")
    if to.exists():
        return to
    partial, random = HOME / "partial", numpy.random.default_rng(0)
    shutil.rmtree(partial, ignore_errors=True)
    for split in ("train", "val"):
        files = sorted((data / split).glob("*/*"))
        for path in files[:: max(1, len(files) // count)]:
            image = Image.open(path).convert("RGB")
            scale = side / min(image.size)
            pixels = numpy.asarray(image.resize([round(edge * scale) for edge in image.size], Image.Resampling.LANCZOS), numpy.float32)
            noisy = pixels + random.normal(0, 5, pixels.shape[:2])[..., None]
            file = partial / path.relative_to(data).with_suffix(".jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8)).save(file, quality=85)
    partial.rename(to)
    return to


def multiplied(data: Path, count: int) -> Path:
    """A data set of `count` training images by links to the images of another."""
    to, sources = derived(data, f"links-{count}"), sorted((data / "train").glob("*/*"))
    if to.exists():
        return to
    partial = HOME / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    for split, many in (("train", count), ("val", len(sources) // 10)):
        for nth in range(many):
            # Spread over the sources, so that each class has some.
            source = sources[nth * 7919 % len(sources)]
            file = partial / split / source.parent.name / f"{nth}{source.suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            os.link(source.resolve(), file)
    partial.rename(to)
    return to


class Curves:
    """Panels of points: what was measured, by title, series and x."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.panels: dict[str, dict[str, dict[float | str, list[dict]]]] = {}

    def point(self, panel: str, series: str, x: float | str, options: list[str], data: Path | None = None) -> None:
        """Measures one point once."""
        seconds = self.options.seconds / PASSES
        figures = bench(self.options.mixd, data or self.options.data, seconds, [*options, "--rounds", "1"])
        self.panels.setdefault(panel, {}).setdefault(series, {}).setdefault(x, []).append(figures)

    def ends(self, values: list) -> list:
        """All values, or the least alone."""
        return values[:1] if self.options.quick else values

    def measure(self) -> None:
        """All panels once."""
        cores = len(os.sched_getaffinity(0))
        for workers in self.ends([n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores]):
            self.point("decode workers", "decoding", workers, [*DECODING, "--workers", str(workers)])
        for side in self.ends([160, 320, 500]):
            source = upscaled(self.options.data, side, 20 if self.options.quick else 1000)
            for decode in ("full", "scaled"):
                self.point("shorter side of the files, px", f"decoding, {decode}", side, [*DECODING, "--decode", decode], source)
        for size in self.ends([96, 128, 160, 192, 224, 256]):
            for series, options in (("decoding", DECODING), ("stored", [])):
                self.point("size of the output, px", series, size, [*options, "--size", str(size)])
        for batch in self.ends([8, 16, 32, 64, 128, 256, 512, 1024]):
            self.point("rows of a batch", "stored", batch, ["--batch-size", str(batch)])
        for dtype in self.ends(["f32", "f16", "bf16", "u8"]):
            self.point("element type", "stored", dtype, ["--dtype", dtype])
        for trainers in self.ends([1, 2, 4, 8, 16]):
            self.point("trainers, each with a feed of its own", "stored", trainers, ["--trainers", str(trainers)])
        for percent in self.ends([0, 25, 50, 75, 100]):
            # A store of exactly that many of the samples; without a store the option is another one.
            bytes_all = sum(1 for _ in (self.options.data / "train").glob("*/*")) * 128 * 128 * 3
            cache = "off" if percent == 0 else str(-(-bytes_all * percent // 100))
            self.point("per cent of the data set that the store has room for", "", percent, ["--cache", cache])
        for count in self.ends([1000, 3000, 10000, 30000, 100000]):
            # The walk over the folder is remembered: `mixd bench` has looked at it before it starts the daemon.
            self.point("images of the data set", "decoding", count, DECODING, multiplied(self.options.data, count))

    def points(self) -> dict[str, dict[str, list[tuple[float | str, dict]]]]:
        """Of each point the pass with the median rate."""
        middle = lambda passes: sorted(passes, key=lambda figures: figures["images_per_s"])[len(passes) // 2]
        return {
            title: {name: [(x, middle(passes)) for x, passes in xs.items()] for name, xs in series.items()}
            for title, series in self.panels.items()
        }

    def draw(self, to: Path) -> None:
        """Images a second as lines, processor time as broken ones, a panel a choice; and the first batch against the data set's size."""
        matplotlib.use("svg")
        # So that a file that says the same is the same file.
        matplotlib.rcParams["svg.hashsalt"] = "mixd"
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(3, 3, figsize=(15, 11), layout="constrained")
        panels = [(title, series, "images_per_s") for title, series in self.points().items()]
        last, series = list(self.points().items())[-1]
        panels.append((last, series, "first_batch_ms"))
        for axis, (title, series, key) in zip(axes.flat, panels):
            cost = axis.twinx() if key == "images_per_s" else None
            for nth, (name, points) in enumerate(series.items()):
                xs, colour = [x for x, _ in points], f"C{nth}"
                axis.plot(xs, [figures[key] for _, figures in points], color=colour, marker="o", label=name)
                if cost:
                    cost.plot(xs, [figures["cpu_ms_per_1000_images"] for _, figures in points], color=colour, marker=".", linestyle=":")
            if title in ("rows of a batch", "images of the data set", "trainers, each with a feed of its own"):
                axis.set_xscale("log", base=10 if title == "images of the data set" else 2)
            axis.set_xlabel(title)
            axis.set_ylabel("images/s" if cost else "ms from start to the first batch")
            axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
            if cost:
                cost.set_ylabel("CPU ms per 1,000 images (dotted)")
                cost.set_ylim(0, 1.1 * cost.get_ylim()[1])
            if all(series):
                axis.legend(fontsize="small")
        figure.suptitle(self.options.head)
        figure.savefig(to, metadata={"Date": None})


def main() -> None:
    """The table, then the curves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mixd", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="seconds that each figure is counted for")
    parser.add_argument("--quick", action="store_true", help="one point a curve, one round: to see that it works")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.head = head(f"make bench DATA={options.data.name} SECONDS={options.seconds:g}")
    HOME.mkdir(exist_ok=True)
    options.data = folder(options.data, HOME)
    rounds = ["--rounds", "1"] if options.quick else []
    figures = {name: bench(options.mixd, options.data, options.seconds, ["--ceiling", *more, *rounds]) for name, more in TABLE.items()}
    curves = Curves(options)
    # Each point again only after all others: the machine's speed may change by half from one minute to the next.
    for _ in range(1 if options.quick else PASSES):
        curves.measure()
    rows = [["", *COLUMNS], *([name, *(column(of) for column in COLUMNS.values())] for name, of in figures.items())]
    stem = report("bench", options.out, options.head, rows, {"table": figures, "curves": curves.points()})
    curves.draw(stem.with_suffix(".svg"))
    print(f"curves: {stem.with_suffix('.svg')}", file=sys.stderr)


if __name__ == "__main__":
    main()
