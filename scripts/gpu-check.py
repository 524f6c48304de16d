#!/usr/bin/env python3
"""`make gpu-check`: mixd on a CUDA device, first whether it is right, then how fast; under 8 minutes.

Carries what it needs: `make gpu-pack` leaves the wheel, mixd-torch and the tests of the library in one folder, and the machine with the device
needs neither Rust nor a network, only this repository, that folder, and a python3 with PyTorch (without it, or with --no-torch, what needs torch
is left out and said so). Exits with 1 where something is wrong.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import bench, head, report

SAMPLE_DATA = Path("sample-data")
FORMATS = [(dtype, layout) for dtype in ("f32", "f16", "bf16", "u8") for layout in ("nchw", "nhwc")]
MIXES = {"mixup": [], "second batch": ["--pairing=second-batch", "--flip"], "CutMix": ["--cutmix=1", "--flip"], "odd size": ["--size=33x50"]}
# What is measured: bf16 is what trainers on such devices take.
SPEED = {
    "resident, bf16, 64": ["--dtype=bf16"],
    "resident, bf16, 256": ["--dtype=bf16", "--batch-size=256"],
    "resident, bf16, 1024": ["--dtype=bf16", "--batch-size=1024"],
    "resident, bf16, 256, every byte": ["--dtype=bf16", "--batch-size=256", "--touch=all"],
    "resident, f32, 256": ["--dtype=f32", "--batch-size=256"],
    "resident, u8, 256": ["--dtype=u8", "--batch-size=256"],
    "from main memory, bf16, 256": ["--dtype=bf16", "--batch-size=256", "--device-cache=off"],
    "from main memory, bf16, 1024": ["--dtype=bf16", "--batch-size=1024", "--device-cache=off"],
    "back to main memory, bf16, 256": ["--dtype=bf16", "--batch-size=256", "--copy-back"],
    "mixed by the processor, bf16, 256": ["--dtype=bf16", "--batch-size=256", "--mixer=cpu", "--device=cpu"],
}
COLUMNS: dict[str, Callable[[dict], str]] = {
    "images/s": lambda f: f"{f['images_per_s']:,.0f}",
    "share of the ceiling": lambda f: f"{f['share_of_ceiling']:.2f} ({f['ceiling']['kind']})",
    "hand-off µs (50 %, 99 %)": lambda f: "-" if f["handoff_us_p50"] is None else f"{f['handoff_us_p50']:.1f}, {f['handoff_us_p99']:.1f}",
    "kernel alone, images/s (share of copies)": lambda f: of_device(f, lambda d: f"{d['kernel_images_per_s']:,.0f} ({d['kernel_share_of_copy']:.2f})"),
    "copies on it, to it GB/s": lambda f: of_device(f, lambda d: f"{d['copy_bytes_per_s'] / 1e9:,.0f}, {d['host_copy_bytes_per_s'] / 1e9:.1f}"),
    "bytes an image to it, in it, back": lambda f: of_device(
        f, lambda d: ", ".join(f"{d[f'{way}_bytes_per_image']:,.0f}" for way in ("to_device", "on_device", "from_device"))
    ),
}
# Seconds after which nothing more is measured.
ENOUGH = 420.0


def of_device(figures: dict, text: Callable[[dict], str]) -> str:
    """What is said of the device, where it was measured."""
    try:
        return text(figures["device"])
    except TypeError:
        return "-"


class Checks:
    """What was checked, and whether it was right."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = [["check", "outcome"]]

    def note(self, name: str, outcome: str) -> None:
        """Says it at once, and keeps it."""
        print(f"{outcome:<8} {name}", file=sys.stderr, flush=True)
        self.rows.append([name, outcome])

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[None]:
        """One check: what is wrong is said, and the next one goes on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self.note(name, f"WRONG: {error!r}")
        else:
            self.note(name, "right")

    @property
    def wrong(self) -> int:
        """How many were not right."""
        return sum(outcome.startswith("WRONG") for _, outcome in self.rows)


def x_of(path: Path) -> bytes:
    """The images of a replayed batch, as the bytes that they are."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])["x"]["data_offsets"]
    return data[8 + length :][start:end]


def values(data: bytes, dtype: str) -> "torch.Tensor":  # noqa: F821
    """Images as numbers."""
    import torch

    kinds = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8}
    return torch.frombuffer(bytearray(data), dtype=kinds[dtype]).double()


def replays(checks: Checks, mixd: Path, folder: Path, quick: bool, torch: bool) -> None:
    """Batches that the device mixes are those of the processor."""

    def replay(name: str, options: list[str]) -> bytes:
        command = [mixd, "replay", "--data", SAMPLE_DATA, "--epoch=1", "--batch=1", "--batch-size=32", "--out", folder / name, *options]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return x_of(folder / name)

    for mix, options in MIXES.items():
        with checks.check(f"{mix}: the kernel's batches are the processor's, to the bit, in {len(FORMATS)} formats"):
            for dtype, layout in FORMATS[:: 5 if quick else 1]:
                shape = [f"--dtype={dtype}", f"--layout={layout}", *options]
                same = replay("cpu", shape) == replay("cuda", [*shape, "--device=cuda"])
                assert same, f"{dtype} {layout}"
    if torch:
        with checks.check("torch's operations on the device: within 1e-6, or one step of rounding"):
            for dtype, layout in FORMATS:
                shape = [f"--dtype={dtype}", f"--layout={layout}"]
                expected = values(replay("cpu", shape), dtype)
                found = values(replay("torch", [*shape, "--device=cuda", "--mixer=torch"]), dtype)
                step = {"f32": 0.0, "f16": 2**-10, "bf16": 2**-7, "u8": 0.0}[dtype]
                off = ((found - expected).abs() - expected.abs() * step).max().item()
                assert off <= 1e-6, f"{dtype} {layout}: off by {off}"


class Daemon:
    """A daemon that is killed, not ended."""

    def __init__(self, mixd: Path, folder: Path) -> None:
        self.command = [mixd, "serve", "--data", SAMPLE_DATA, "--socket", folder / "d.sock", "--shm-dir", folder / "shm"]
        self.socket = folder / "d.sock"
        self.start()

    def start(self) -> None:
        """Starts it, or the next in its place."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, env=os.environ | {"RUST_LOG": "mixd=error"})
        assert self.process.stdout and self.process.stdout.readline()

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()


TRAINER = """
import mixd, sys, time, torch
server = mixd.connect(sys.argv[1])
feed = server.feed(device="cuda", dtype="bf16", batch_size=256)
held = [feed.next_batch().x.torch() for _ in range(3)]
print("reading", flush=True)
time.sleep(600)
"""


def through_torch(checks: Checks, mixd: Path, folder: Path, site: Path) -> None:
    """The package, with torch on the device."""
    import torch

    import mixd as package

    daemon = Daemon(mixd, folder)
    server = package.connect(daemon.socket)
    options = {"batch_size": 64, "dtype": "bf16", "seed": 3}
    try:
        with checks.check("tensors on the device, without a copy, are the processor's batches"):
            device, memory = server.feed(device="cuda", **options), server.feed(**options)
            for _ in range(12):
                ours, theirs = device.next_batch(), memory.next_batch()
                x = ours.x.torch()
                assert x.is_cuda and x.data_ptr() == ours.x.data_ptr and torch.equal(x.cpu(), theirs.x.torch())
                assert ours.lam.tolist() == theirs.lam.tolist()
                del x, ours, theirs
            device.close(), memory.close()
        with checks.check("a slot is not written while kernels that read it are queued"):
            device, memory = server.feed(device="cuda", slots=2, **options), server.feed(**options)
            weight, copies = torch.randn(4096, 4096, device="cuda"), []
            stream = torch.cuda.Stream()
            for _ in range(30):
                batch = device.next_batch()
                with torch.cuda.stream(stream):
                    # Milliseconds of work before the read.
                    for _ in range(4):
                        weight = torch.nn.functional.normalize(weight @ weight)
                    copies.append(batch.x.torch().clone())
                del batch
            device.close()
            torch.cuda.synchronize()
            for at, copy in enumerate(copies):
                assert torch.equal(copy.cpu(), memory.next_batch().x.torch()), f"batch {at}"
            memory.close()
        with checks.check("a training step learns from batches on the device"):
            from mixd.torch import MixedLoss

            feed = server.feed(device="cuda", batch_size=32, size=64)
            net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 10)).cuda()
            loss_of, optimizer = MixedLoss(torch.nn.CrossEntropyLoss()), torch.optim.SGD(net.parameters(), 1e-3)
            losses = []
            for _ in range(6):
                for batch in feed:
                    optimizer.zero_grad()
                    loss = loss_of(net(batch.x.torch()), batch)
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
            feed.close()
            assert sum(losses[-8:]) < sum(losses[:8]), losses
        with checks.check("a trainer that is killed costs no device memory"):

            def trainer() -> subprocess.Popen:
                code = [sys.executable, "-c", TRAINER, daemon.socket]
                process = subprocess.Popen(code, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(site)})
                assert process.stdout and process.stdout.readline()
                process.send_signal(signal.SIGKILL)
                process.wait()
                return process

            def settled(wanted: int | None) -> int:
                end = time.monotonic() + 20
                while True:
                    free = torch.cuda.mem_get_info()[0]
                    if wanted is None or free >= wanted or time.monotonic() > end:
                        return free
                    time.sleep(0.05)

            trainer()
            time.sleep(1)
            before = settled(None)
            for _ in range(5):
                trainer()
            # Less than a feed's slots and samples of one trainer.
            assert settled(before - (16 << 20)) >= before - (16 << 20), (before, torch.cuda.mem_get_info())
        with checks.check("a daemon that is killed takes no batch with it, and the next one goes on"):
            server = package.connect(daemon.socket, reconnect=30)
            device, memory = server.feed(device="cuda", **options), server.feed(**options)
            expected = [memory.next_batch().x.torch().clone() for _ in range(16)]
            memory.close()
            for at in range(3):
                assert torch.equal(device.next_batch().x.torch().cpu(), expected[at])
            held = device.next_batch().x.torch()
            daemon.kill()
            time.sleep(0.5)
            assert torch.equal(held.cpu(), expected[3]), "what was held"
            del held
            daemon.start()
            for at in range(4, 16):
                assert torch.equal(device.next_batch().x.torch().cpu(), expected[at]), f"batch {at}"
            device.close()
    finally:
        daemon.kill()


def many(folder: Path, copies: int) -> Path:
    """The sample data under as many names as Imagenette has images."""
    home = folder / "many"
    for path in SAMPLE_DATA.rglob("*.JPEG"):
        to = home / path.relative_to(SAMPLE_DATA).parent
        to.mkdir(parents=True, exist_ok=True)
        for nth in range(copies):
            (to / f"{path.stem}-{nth}.JPEG").symlink_to(path.resolve())
    return home


def main() -> None:
    """Checks, measures, reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", type=Path, default=Path(".gpu-check"), help="what `make gpu-pack` made")
    parser.add_argument("--out", type=Path, default=Path("benches/results"))
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--quick", action="store_true", help="each thing once, briefly: for a driver that runs on the processor")
    options = parser.parse_args()
    checks, start = Checks(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = folder / "site"
        wheel = next(options.pack.glob("mixd-*.whl"))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", site, wheel]
        subprocess.run(pip, check=True)
        mixd = site / "bin" / "mixd"
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(options.pack / "mixd-torch", mixd.with_name("mixd-torch"))
        sys.path.insert(0, str(site))
        with_torch = False
        if not options.no_torch:
            with contextlib.suppress(ImportError):
                import torch

                with_torch = torch.cuda.is_available()
                # What mixd-torch finds libtorch by, with CUDA; and the daemon NVRTC.
                libraries = [str(Path(torch.__file__).parent / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
                nvrtc = (str(path.parent) for place in sys.path for path in Path(place).glob("nvidia/*/lib/libnvrtc.so.*"))
                os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, [*libraries, next(nvrtc, "")]))
        tests = options.pack / "mixd-tests"
        if tests.exists():
            with checks.check("the property, the goldens and the driver's objects (tests of the library)"):
                found = {"MIXD_REFERENCE": str(options.pack / "reference")} if (options.pack / "reference").exists() else {}
                command = [tests, "mix::", "cuda::"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=os.environ | found)
                assert done.returncode == 0, done.stdout[-2000:]
            for line in done.stderr.splitlines():
                if line.startswith("left out"):
                    checks.note(line, "left out")
        replays(checks, mixd, folder, options.quick, with_torch and mixd.with_name("mixd-torch").exists())
        if with_torch:
            with checks.check("the package and torch, to the end of their checks"):
                through_torch(checks, mixd, folder, site)
        else:
            checks.note("what needs torch on the device", "left out")
        if with_torch and mixd.with_name("mixd-torch").exists():
            for mixer in ("cuda", "torch", "cpu"):
                with checks.check(f"mixd train --device cuda --mixer {mixer}"):
                    command = [mixd, "train", "--data", SAMPLE_DATA, "--device=cuda", f"--mixer={mixer}", "--epochs=3", "--batch-size=16", "--lr=0.02"]
                    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
                    assert done.returncode == 0, done.stderr[-500:]
                    print(done.stdout)
        data = many(folder, 2 if options.quick else 48)
        figures, rows, device = {}, [["", *COLUMNS]], "?"
        report("gpu-checks", options.out, head("make gpu-check"), checks.rows, checks.rows)
        for name, more in SPEED.items():
            if time.monotonic() - start > ENOUGH:
                checks.note(f"measuring {name}: no time is left", "left out")
                continue
            # Every round has its own ceilings.
            where = [] if any(option.startswith("--device=") for option in more) else ["--device=cuda"]
            briefly = ["--rounds=1", "--size=32"] if options.quick else ["--rounds=3"]
            with checks.check(f"measuring {name}"):
                figures[name] = bench(mixd, data, 0.1 if options.quick else 1.5, [*where, "--ceiling", *briefly, *more])
                rows.append([name, *(text(figures[name]) for text in COLUMNS.values())])
                device = (figures[name]["device"] or {}).get("name") or device
            # What is there is written down, whatever comes.
            when = f"{head('make gpu-check')}; {device}; {time.monotonic() - start:.0f} s; {checks.wrong} wrong"
            report("gpu", options.out, when, rows, figures)
        report("gpu-checks", options.out, when, checks.rows, checks.rows)
    sys.exit(1 if checks.wrong else 0)


if __name__ == "__main__":
    main()
