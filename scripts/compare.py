#!/usr/bin/env python3
"""`make compare`: mixd beside what its users would pick instead; the same work, fresh processes, one after the other in each round."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
from datetime import date
from pathlib import Path

HOME = Path(".compare")
REQUIREMENTS = ["torch==2.11.0", "torchvision==0.26.0", "pillow==13.0.0", "numpy==2.4.6", "nvidia-dali-cuda130==2.4.0"]
# glibc keeps memory instead of giving it back and clearing it anew: half of the torch contenders' time otherwise.
ALLOCATOR = {"MALLOC_TOP_PAD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
OTHERS = ["dataloader-torchvision", "dataloader-pil", "dali-cpu", "ram-torch", "ram-compiled"]
# Name, options of `mixd bench`, and whom it is set against.
OURS = {
    "mixd, decoding": (["--cache", "off"], OTHERS[:3]),
    "mixd, f32": (["--dtype", "f32"], OTHERS[3:]),
    "mixd, bf16": (["--dtype", "bf16"], []),
    "mixd, u8": (["--dtype", "u8"], []),
}


def python() -> Path:
    """The interpreter of an environment of the contenders' own, made if it is not there or has other versions."""
    stamp, wanted = HOME / "venv" / "requirements", "\n".join(REQUIREMENTS)
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"installing {', '.join(REQUIREMENTS)} (5 GB, once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", HOME / "venv"], check=True)
        subprocess.run([HOME / "venv/bin/pip", "install", "--quiet", *REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    return HOME / "venv/bin/python"


def folder(data: Path) -> Path:
    """The image folder; an archive is unpacked once."""
    if data.is_dir():
        return data
    to = HOME / "data" / data.name
    if not to.exists():
        partial = to.with_suffix(".partial")
        with tarfile.open(data) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(to)
    return next(path.parent for path in to.rglob("train") if path.is_dir())


def run(command: list, name: str) -> dict:
    """The last line that a command prints, as JSON; its last words where it fails."""
    print(f"  {name}", file=sys.stderr)
    done = subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def bench(mixd: Path, data: Path, seconds: float, options: list[str]) -> dict:
    """mixd's figures under the names of the others'."""
    figures = run([mixd, "bench", "--json", "--data", data, "--seconds", str(seconds), *options], " ".join(["mixd", *options]))
    if "error" in figures:
        sys.exit(f"mixd bench failed: {figures['error']}")
    return {
        "images_per_s": figures["images_per_s"],
        "cpu_ms_per_image": figures["cpu_ms_per_1000_images"] / 1000 + 1000 * figures["trainer_cpu_seconds"] / figures["images"],
        "memory_mb": figures["peak_rss_mb"],
        "first_batch_s": figures["first_batch_ms"] / 1000,
    }


def table(rounds: list[dict]) -> list[list[str]]:
    """A row a contender: medians, and mixd's ratio to it in each round as median and range."""
    against = {other: ours for ours, (_, others) in OURS.items() for other in others}
    rows = [["", "images/s", "CPU ms an image", "memory MB", "first batch s", "mixd is faster by"]]
    for name in [*OTHERS, *OURS]:
        results = [of[name] for of in rounds]
        if errors := [result["error"] for result in results if "error" in result]:
            rows.append([name, errors[0], "", "", "", ""])
            continue
        median = lambda key: statistics.median(result[key] for result in results)
        ratios = [of[against[name]]["images_per_s"] / of[name]["images_per_s"] for of in rounds] if name in against else []
        times = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})" if ratios else ""
        figures = [f"{median('images_per_s'):,.0f}", f"{median('cpu_ms_per_image'):.3f}", f"{median('memory_mb'):,.0f}"]
        rows.append([name, *figures, f"{median('first_batch_s'):.2f}", times])
    return rows


def head(options: argparse.Namespace) -> str:
    """When, where and how."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    machine = f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
    command = f"make compare DATA={options.data.name} ROUNDS={options.rounds} SECONDS={options.seconds:g}"
    return f"{date.today()}, {machine}: `{command}`; {', '.join(REQUIREMENTS)}"


def main() -> None:
    """Rounds, then the table on standard output and in files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mixd", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    interpreter, data, rounds = python(), folder(options.data), []
    loaders = Path(__file__).with_name("compare_loaders.py")
    for nth in range(options.rounds):
        print(f"round {nth + 1} of {options.rounds}", file=sys.stderr)
        others = [[interpreter, loaders, name, "--data", data, "--seconds", str(options.seconds)] for name in OTHERS]
        results = {name: run(command, name) for name, command in zip(OTHERS, others)}
        results |= {name: bench(options.mixd, data, options.seconds, more) for name, (more, _) in OURS.items()}
        rounds.append(results)
    rows = table(rounds)
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{date.today()}-compare"
    stem.with_suffix(".md").write_text("\n".join([head(options), "", *lines, ""]))
    stem.with_suffix(".json").write_text(json.dumps({"head": head(options), "rounds": rounds}, indent=1))
    widths = [max(map(len, column)) for column in zip(*rows)]
    print(head(options), *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows), sep="\n")


if __name__ == "__main__":
    main()
