"""What `make bench` and `make compare` share: where data lies, how programs are run, what a report looks like."""

import json
import os
import platform
import subprocess
import sys
import tarfile
from datetime import date
from pathlib import Path


def folder(data: Path, home: Path) -> Path:
    """The image folder; an archive is unpacked once, below `home`."""
    if data.is_dir():
        return data
    to = home / "data" / data.name
    if not to.exists():
        partial = to.with_suffix(".partial")
        with tarfile.open(data) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(to)
    return next(path.parent for path in to.rglob("train") if path.is_dir())


def run(command: list, name: str, **env: str) -> dict:
    """The last line that a command prints, as JSON; its last words where it fails."""
    print(f"  {name}", file=sys.stderr)
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return {"error": "\n".join(done.stderr.strip().splitlines()[-20:]) or "it failed"}
    return json.loads(done.stdout.splitlines()[-1])


def bench(mixd: Path, data: Path, seconds: float, options: list[str], **env: str) -> dict:
    """The figures of `mixd bench`."""
    command = [mixd, "bench", "--json", "--data", data, "--seconds", str(seconds), *options]
    figures = run(command, " ".join(["mixd", *options]), **env)
    if "error" in figures:
        sys.exit(f"mixd bench failed: {figures['error']}")
    return figures


def head(command: str) -> str:
    """When, where and how."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{date.today()}, {os.cpu_count()} cores of {names[0] if names else platform.machine()}: `{command}`"


def report(name: str, out: Path, head: str, rows: list[list[str]], figures: object, quiet: bool = False) -> Path:
    """Prints a table, unless quiet, and writes it and the figures into `out`; returns the files' name without extension."""
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{date.today()}-{name}"
    stem.with_suffix(".md").write_text("\n".join([head, "", *lines, ""]))
    stem.with_suffix(".json").write_text(json.dumps({"head": head, "figures": figures}, indent=1))
    widths = [max(map(len, column)) for column in zip(*rows)]
    if not quiet:
        print(head, *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows), sep="\n")
    return stem
