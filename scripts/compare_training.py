#!/usr/bin/env python3
"""`make compare-training`: the same training fed by mixd and by torchvision with torch's DataLoader.

Trains the lesson's network with SGD, mixup and label smoothing on views of the recipe `imagenette`. Everything but the
loader is the same code: initial weights, loss, optimiser, loop, validation. For each seed both sides run at the same
time, each with its processes pinned to one core; the sides swap cores from seed to seed. Results are written after
each epoch.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import folder, head

SIDES = {"mixd": "mixd", "torch": "torchvision + DataLoader"}
BATCH, SMOOTHING, ALPHA = 64, 0.1, 0.4
# The recipe `imagenette`: docs/spec/recipes.md#presets.
RECIPE, SCALE, RESIZE, SIZE = "imagenette", (0.35, 1.0), 152, 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNELS = [3, 16, 32, 64, 32, 64, 128, 256, 512]
COLUMNS = ["seed", "core", "training loss", "validation accuracy", "wall s", "CPU s"]
COLUMNS += ["of it forward, backward, step s", "all else s"]
# glibc keeps freed memory instead of returning it; without this, page faults dominate both sides' training.
ALLOCATOR = {
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
}


@contextlib.contextmanager
def mixd_loader(data: Path, seed: int, workers: int) -> Iterator[tuple]:
    """Epochs of training and of validation batches from a daemon, and the number of classes."""
    import mixd
    import mixd.torch

    with mixd.serve(data=data, workers=workers) as server:
        train = server.feed("train", recipe=RECIPE, size=SIZE, batch_size=BATCH, mixup=ALPHA, fold=True, seed=seed)
        valid = server.feed("val", recipe=RECIPE, size=SIZE, batch_size=2 * BATCH)
        yield mixd.torch.DataLoader(train), mixd.torch.DataLoader(valid), len(train.classes)


class Mixed:
    """A DataLoader's batches with mixup: λ = max(r, 1 - r) of r ~ Beta(α, α) for each image, partners shuffled."""

    def __init__(self, loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple]:
        import torch
        from mixd.torch import Targets

        beta = torch.distributions.Beta(ALPHA, ALPHA)
        for x, y in self.loader:
            raw, partner = beta.sample((len(x),)), torch.randperm(len(x))
            lam = torch.maximum(raw, 1 - raw)
            weight = lam.view(-1, 1, 1, 1)
            yield weight * x + (1 - weight) * x[partner], Targets(y, y[partner], lam)


@contextlib.contextmanager
def torch_loader(data: Path, seed: int, workers: int) -> Iterator[tuple]:
    """The same recipe as torchvision's transforms on PIL images, in torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomResizedCrop(SIZE, scale=SCALE), transforms.RandomHorizontalFlip()]
    center = [transforms.Resize((RESIZE, RESIZE)), transforms.CenterCrop(SIZE)]

    def loader(split: str, views: list, batch_size: int, shuffle: bool) -> DataLoader:
        images = ImageFolder(data / split, transforms.Compose([*views, *to_tensor]))
        return DataLoader(images, batch_size, shuffle=shuffle, num_workers=workers, persistent_workers=True)

    train = loader("train", augment, BATCH, True)
    yield Mixed(train), loader("val", center, 2 * BATCH, False), len(train.dataset.classes)


LOADERS: dict[str, Callable] = {"mixd": mixd_loader, "torch": torch_loader}


def network(classes: int):
    """The lesson's network: src/lesson/train/model.rs."""
    from torch import nn

    blocks = []
    for at, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS)):
        convolution = nn.Conv2d(inputs, outputs, 3, 2 if at else 1, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, a=0.1)
        blocks += [convolution, nn.ReLU(), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], classes))


def cpu_seconds() -> float:
    """CPU time of this process and its descendants so far, those that have exited included."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            stats[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    tree, ticks = [os.getpid()], 0
    for pid in tree:
        ticks += stats[pid][1]
        tree += [child for child, (parent, _) in stats.items() if parent == pid]
    return ticks / os.sysconf("SC_CLK_TCK")


def train(side: str, data: Path, seed: int, core: int, epochs: int, lr: float, workers: int) -> None:
    """One side of one seed; prints a line of JSON after each epoch."""
    os.sched_setaffinity(0, {core})
    import mixd.torch
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(1)
    # Both sides start at the same time, with everything imported.
    print("ready", flush=True)
    sys.stdin.readline()
    start, start_cpu, compute = time.monotonic(), cpu_seconds(), 0.0
    torch.manual_seed(seed)
    criterion = mixd.torch.MixedLoss(nn.CrossEntropyLoss(label_smoothing=SMOOTHING))
    with LOADERS[side](data, seed, workers) as (train, valid, classes):
        model = network(classes).to(memory_format=torch.channels_last)
        weights = sum(parameter.double().abs().sum().item() for parameter in model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr)
        for epoch in range(epochs):
            model.train()
            trained, validated = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
            for x, targets in train:
                begin = time.thread_time()
                loss = criterion(model(x), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                trained += torch.tensor([len(x) * loss.item(), len(x)])
                del x
                compute += time.thread_time() - begin
            model.eval()
            with torch.no_grad():
                for x, y in valid:
                    begin = time.thread_time()
                    logits = model(x)
                    loss, right = functional.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item()
                    validated += torch.tensor([len(x) * loss, right, len(x)])
                    del x
                    compute += time.thread_time() - begin
            result = {
                "epoch": epoch + 1,
                "train_loss": (trained[0] / trained[1]).item(),
                "valid_loss": (validated[0] / validated[2]).item(),
                "valid_accuracy": (validated[1] / validated[2]).item(),
                "images": [int(trained[1]), int(validated[2])],
                "wall_s": time.monotonic() - start,
                "cpu_s": cpu_seconds() - start_cpu,
                "compute_cpu_s": compute,
                "initial_weights": weights,
            }
            print(json.dumps(result), flush=True)


def commit() -> str:
    """The repository's commit."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def span(values: list[float], digits: int) -> str:
    """The range of the values."""
    texts = [f"{value:.{digits}f}" for value in (min(values), max(values))]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def tables(runs: list[dict], epochs: int) -> list[str]:
    """A table of the ranges over seeds, and one a side with every epoch of every seed."""
    lines = []

    def row(*cells: object) -> None:
        lines.append(f"| {' | '.join(map(str, cells))} |")

    numbers = range(1, epochs + 1)
    row("", *(f"epoch {number}" for number in numbers))
    row(*["---"] * (epochs + 1))
    for name, key, digits in [("training loss", "train_loss", 3), ("validation accuracy", "valid_accuracy", 3)]:
        for side, title in SIDES.items():
            each = [
                [run["epochs"][at][key] for run in runs if run["side"] == side and len(run["epochs"]) > at]
                for at in range(epochs)
            ]
            row(f"{name}, {title}", *(span(values, digits) if values else "" for values in each))
    for side, title in SIDES.items():
        lines += ["", f"{title}:", ""]
        row(*COLUMNS)
        row(*["---"] * len(COLUMNS))
        for run in runs:
            if run["side"] == side and run["epochs"]:
                last = run["epochs"][-1]
                times = [last["wall_s"], last["cpu_s"], last["compute_cpu_s"], last["cpu_s"] - last["compute_cpu_s"]]
                each = [
                    ", ".join(f"{result[key]:.3f}" for result in run["epochs"])
                    for key in ("train_loss", "valid_accuracy")
                ]
                row(run["seed"], run["core"], *each, *(f"{value:.1f}" for value in times))
    lines.append("")
    for side, title in SIDES.items():
        ends = [run["epochs"][-1] for run in runs if run["side"] == side and len(run["epochs"]) == epochs]
        if ends:
            wall, cpu, compute = ([end[key] for end in ends] for key in ("wall_s", "cpu_s", "compute_cpu_s"))
            rest = [all_of_it - part for all_of_it, part in zip(cpu, compute, strict=True)]
            lines.append(
                f"- {title}, mean of {len(ends)} seeds: {statistics.mean(wall):.0f} s, "
                f"{statistics.mean(cpu):.0f} CPU s, of them {statistics.mean(rest):.1f} ({span(rest, 1)}) outside of forward, backward and step."
            )
    return lines


def main() -> None:
    """Runs both sides of each seed, and writes the report as results come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=1, help="decoding workers of each side, on its one core")
    parser.add_argument("--side", choices=SIDES, help="train this side of the first seed on --core, in this process")
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    data = folder(options.data, Path(".compare"))
    if options.side:
        return train(options.side, data, options.seeds[0], options.core, options.epochs, options.lr, options.workers)

    import torch
    import torchvision
    from PIL import __version__ as pillow

    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("the sides need a core each: only one is available")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {pillow}"
    command = f"make compare-training DATA={options.data.name}"
    if sys.argv[1:] != ["--data", str(options.data), "--out", str(options.out)]:
        command = f"scripts/{' '.join([Path(__file__).name, *sys.argv[1:]])}"
    about = (
        f"{head(command)}; commit {commit()}, {versions}, Python {platform.python_version()}. Recipe {RECIPE} at "
        f"{SIZE} px, mixup {ALPHA} (folded), label smoothing {SMOOTHING}, SGD at {options.lr:g}, batch {BATCH}, "
        f"{options.epochs} epochs; {options.workers} decoding worker a side. The two sides of a seed ran at the same "
        f"time, each pinned to one core. Niceness {os.nice(0)}, load average at the start {os.getloadavg()[0]:.1f}."
    )
    runs, lock = [], threading.Lock()
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{time.strftime('%Y-%m-%d')}-training"

    def write() -> None:
        with lock:
            stem.with_suffix(".json").write_text(
                json.dumps({"head": about, "epochs": options.epochs, "runs": runs}, indent=1)
            )
            stem.with_suffix(".md").write_text("\n".join([about, "", *tables(runs, options.epochs), ""]))

    def follow(process: subprocess.Popen, run: dict) -> None:
        for line in process.stdout:
            run["epochs"].append(json.loads(line))
            print(run["side"], f"seed {run['seed']}", line.strip(), file=sys.stderr, flush=True)
            write()

    for nth, seed in enumerate(options.seeds):
        sides = []
        for side, core in zip(SIDES, cores[:: -1 if nth % 2 else 1], strict=True):
            run = {"side": side, "seed": seed, "core": core, "epochs": []}
            runs.append(run)
            arguments = [*sys.argv[1:], "--side", side, "--core", str(core), "--seeds", str(seed)]
            process = subprocess.Popen(
                [sys.executable, __file__, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | ALLOCATOR,
            )
            sides.append((process, run))
        if any(process.stdout.readline() != "ready\n" for process, _ in sides):
            sys.exit("a side failed before its training began (see above)")
        followers = [threading.Thread(target=follow, args=side) for side in sides]
        for (process, _), follower in zip(sides, followers, strict=True):
            process.stdin.write("\n")
            process.stdin.flush()
            follower.start()
        for (process, _), follower in zip(sides, followers, strict=True):
            follower.join()
            if process.wait():
                sys.exit("a side failed (see above)")
        first, second = (run["epochs"][0]["initial_weights"] for _, run in sides)
        if first != second:
            sys.exit(f"the sides began with different weights: their sums are {first} and {second}")
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
