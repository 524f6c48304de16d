#!/usr/bin/env python3
"""`make gpu-check`: mixd on a CUDA device, first whether it is right, then how fast; under 8 minutes.

Carries what it needs: `make gpu-pack` leaves the wheel, mixd-torch and the tests of the library in one folder, and the machine with the device
needs neither Rust nor a network, only this repository, that folder, and a python3 with PyTorch (without it, or with --no-torch, what needs torch
is left out and said so). Nothing waits for ever: each check has its time, and the whole its end. Exits with 1 where something is wrong.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    "copies on it, to it, back GB/s": lambda f: of_device(
        f, lambda d: ", ".join(f"{d[f'{way}_bytes_per_s'] / 1e9:,.1f}" for way in ("copy", "host_copy", "copy_back"))
    ),
    "bytes an image to it, in it, back": lambda f: of_device(
        f, lambda d: ", ".join(f"{d[f'{way}_bytes_per_image']:,.0f}" for way in ("to_device", "on_device", "from_device"))
    ),
}
PARTS = ("library", "replays", "torch", "speed", "train")
# Seconds after which nothing more is begun; and after which all of it ends, with a word on where it stood.
ENOUGH, END = 420.0, 475.0


def of_device(figures: dict, text: Callable[[dict], str]) -> str:
    """What is said of the device, where it was measured."""
    try:
        return text(figures["device"])
    except TypeError:
        return "-"


def ran(command: list, seconds: float, **env: str) -> str:
    """What a command prints; its last words are the error where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=os.environ | env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """What is done within may take so long; an alarm around this one goes on afterwards."""
    start, rest = time.monotonic(), signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(rest and max(1, round(rest - (time.monotonic() - start))))


class Checks:
    """What was checked, and whether it was right; written down after each, whatever comes."""

    def __init__(self, out: Path, built: str) -> None:
        self.rows: list[list[str]] = [["check", "outcome", "s"]]
        self.out, self.built, self.start, self.device = out, built, time.monotonic(), "?"

    def head(self) -> str:
        """When, where, on what, and of which commit."""
        return f"{head('make gpu-check')}; {self.device}; commit {self.built}; {time.monotonic() - self.start:.0f} s; {self.wrong} wrong"

    def note(self, name: str, outcome: str, seconds: float = 0.0) -> None:
        """Says it at once, and keeps it."""
        print(f"{outcome.split(':')[0]:<8} {name} ({seconds:.1f} s)", file=sys.stderr, flush=True)
        # Causes come last.
        line = " ".join(outcome.split())
        self.rows.append([name, line if len(line) < 300 else f"{line[:50]} … {line[-240:]}", f"{seconds:.1f}"])
        report("gpu-checks", self.out, self.head(), self.rows, self.rows, quiet=True)

    @contextlib.contextmanager
    def check(self, name: str, seconds: int = 60) -> Iterator[None]:
        """One check, which may take so long: what is wrong is said, and the next one goes on."""
        start, outcome = time.monotonic(), "right"
        try:
            with alarm(seconds):
                yield
        except (Exception, SystemExit) as error:
            traceback.print_exc(limit=-2)
            outcome = f"WRONG: {type(error).__name__}: {error}"
        self.note(name, outcome, time.monotonic() - start)

    @contextlib.contextmanager
    def others(self, name: str, seconds: int) -> Iterator[None]:
        """A measurement beside others' programs, which this machine may lack what it takes for: left out then."""
        if not self.has_time(name):
            return
        try:
            with alarm(seconds):
                yield
        except Exception as error:
            self.note(f"{name}: {type(error).__name__}: {str(error)[:200]}", "left out")

    @property
    def wrong(self) -> int:
        """How many were not right."""
        return sum(row[1].startswith("WRONG") for row in self.rows)

    def has_time(self, name: str) -> bool:
        """Whether more can be begun; says so where not."""
        if time.monotonic() - self.start < ENOUGH:
            return True
        self.note(f"{name}: no time is left", "left out")
        return False


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
        out = folder / f"{name}{' '.join(options).replace('/', '')}"
        ran([mixd, "replay", "--data", SAMPLE_DATA, "--epoch=1", "--batch=1", "--batch-size=32", "--out", out, *options], 60)
        return x_of(out)

    def differs(shape: list[str]) -> bool:
        return replay("cpu", shape) != replay("cuda", [*shape, "--device=cuda"])

    def off(dtype: str, layout: str) -> float:
        shape = [f"--dtype={dtype}", f"--layout={layout}"]
        expected = values(replay("cpu", shape), dtype)
        found = values(replay("torch", [*shape, "--device=cuda", "--mixer=torch"]), dtype)
        step = {"f32": 0.0, "f16": 2**-10, "bf16": 2**-7, "u8": 0.0}[dtype]
        return ((found - expected).abs() - expected.abs() * step).max().item()

    # Each is a process, most of whose time the driver takes to start.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as several:
        for mix, options in MIXES.items():
            shapes = [[f"--dtype={dtype}", f"--layout={layout}", *options] for dtype, layout in FORMATS[:: 5 if quick else 1]]
            with checks.check(f"{mix}: the kernel's batches are the processor's, to the bit, in {len(shapes)} formats"):
                wrong = [shape for shape, is_wrong in zip(shapes, several.map(differs, shapes)) if is_wrong]
                assert not wrong, wrong
        if torch:
            with checks.check("torch's operations on the device: within 1e-6, or one step of rounding"):
                wrong = [(kind, by) for kind, by in zip(FORMATS, several.map(lambda kind: off(*kind), FORMATS)) if by > 1e-6]
                assert not wrong, wrong


class Daemon:
    """A daemon that is killed, not ended."""

    def __init__(self, mixd: Path, folder: Path, data: Path = SAMPLE_DATA) -> None:
        self.command = [mixd, "serve", "--until-eof", "--data", data, "--socket", folder / "d.sock"]
        self.socket = folder / "d.sock"
        self.start()

    def start(self) -> None:
        """Starts it, or the next in its place."""
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"RUST_LOG": "mixd=error"})
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
        with checks.check("batches are given back while a graph is captured, and feed it when it is replayed"):
            # Batches that are all of one size.
            alike = options | {"batch_size": 40}
            device, memory = server.feed(device="cuda", slots=2, **alike), server.feed(**alike)
            still, graph = torch.zeros((40, 3, 128, 128), dtype=torch.bfloat16, device="cuda"), torch.cuda.CUDAGraph()
            held = device.next_batch()
            tensor = held.x.torch()
            memory.next_batch()
            with torch.cuda.graph(graph):
                doubled = still.float() * 2
                del tensor, held
            for at in range(6):
                still.copy_(device.next_batch().x.torch())
                graph.replay()
                assert torch.equal(doubled.cpu(), memory.next_batch().x.torch().float() * 2), f"batch {at}"
            device.close(), memory.close()
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
        with checks.check("a trainer that is killed costs no device memory", 120):

            def trainer() -> subprocess.Popen:
                code = [sys.executable, "-c", TRAINER, daemon.socket]
                process = subprocess.Popen(code, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(site)})
                assert process.stdout and process.stdout.readline()
                process.send_signal(signal.SIGKILL)
                process.wait()
                return process

            def settled() -> int:
                """Free memory, once it has not changed for two seconds: contexts take their time to go."""
                end, since, free = time.monotonic() + 20, time.monotonic(), 0
                while time.monotonic() < min(end, since + 2):
                    if (now := torch.cuda.mem_get_info()[0]) != free:
                        since, free = time.monotonic(), now
                    time.sleep(0.05)
                return free

            trainer()
            before = settled()
            for _ in range(5):
                trainer()
            # Less than a feed's slots and samples of one trainer.
            assert abs(settled() - before) < 16 << 20, (before, settled())
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


def trains(checks: Checks, mixd: Path, folder: Path, data: Path) -> None:
    """What a training loop on the same device has of it: beside the same loop over one batch that stays where it is."""
    import torch
    import torchvision

    import mixd as package
    from mixd.torch import MixedLoss

    torch.backends.cudnn.benchmark = True
    daemon = Daemon(mixd, folder, data)
    try:
        for model, size in (("resnet18", 128), ("resnet50", 224)):
            feed = package.connect(daemon.socket).feed(device="cuda", dtype="bf16", batch_size=256, size=size, seed=1, last="drop")
            net = getattr(torchvision.models, model)(num_classes=10).cuda().bfloat16()
            loss_of, optimizer = MixedLoss(torch.nn.CrossEntropyLoss()), torch.optim.SGD(net.parameters(), 1e-3)

            def rate(next_batch: Callable, seconds: float) -> float:
                torch.cuda.synchronize()
                start, images = time.monotonic(), 0
                while time.monotonic() - start < seconds:
                    batch = next_batch()
                    optimizer.zero_grad(set_to_none=True)
                    loss_of(net(batch.x), batch).backward()
                    optimizer.step()
                    images += len(batch.lam)
                torch.cuda.synchronize()
                return images / (time.monotonic() - start)

            # Everything is there from the second epoch on.
            for _ in range(len(feed)):
                feed.next_batch()
            still = feed.next_batch().to("cuda")
            still.x = still.x.clone()
            rate(lambda: still, 1.0), rate(lambda: feed.next_batch().to("cuda"), 1.0)
            rates = [(rate(lambda: still, 1.0), rate(lambda: feed.next_batch().to("cuda"), 1.0)) for _ in range(3)]
            alone, fed = sorted(rates, key=lambda pair: pair[1] / pair[0])[1]
            checks.note(f"{model}, bf16, 256 at {size}²: {fed:,.0f} images/s from mixd, {fed / alone:.3f} of what one batch that stays gives", "measured")
            feed.close()
    finally:
        daemon.kill()


def in_the_trainer(checks: Checks) -> None:
    """The same batches made by torch, of samples that are all on the device, by a process that does nothing else."""
    import torch

    mean, std = (torch.tensor(three, device="cuda").view(3, 1, 1) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def mix(samples: torch.Tensor, own: torch.Tensor, partner: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        both = (lam * samples[own] + (1 - lam) * samples[partner]) / 255
        return ((both - mean) / std).to(torch.bfloat16)

    for name in ("torch's operations", "torch.compile"):
        with checks.others(f"{name} in the trainer", 60):
            function = torch.compile(mix) if name == "torch.compile" else mix
            samples = torch.randint(0, 256, (9469, 3, 128, 128), dtype=torch.uint8, device="cuda")
            own = [torch.randperm(9469, device="cuda")[:256] for _ in range(32)]
            partner, lam = [one[torch.randperm(256, device="cuda")] for one in own], torch.rand(32, 256, 1, 1, 1, device="cuda")
            rates = []
            for _ in range(4):
                start, batches = time.monotonic(), 0
                while time.monotonic() - start < 0.5:
                    for at in range(32):
                        function(samples, own[at], partner[at], lam[at])
                    torch.cuda.synchronize()
                    batches += 32
                rates.append(256 * batches / (time.monotonic() - start))
            checks.note(f"{name} in the trainer, bf16, 256: {sorted(rates[1:])[1]:,.0f} images/s", "measured")


def many(folder: Path, copies: int) -> Path:
    """The sample data under as many names as Imagenette has images."""
    home = folder / "many"
    for path in SAMPLE_DATA.rglob("*.JPEG"):
        to = home / path.relative_to(SAMPLE_DATA).parent
        to.mkdir(parents=True, exist_ok=True)
        for nth in range(copies):
            (to / f"{path.stem}-{nth}.JPEG").symlink_to(path.resolve())
    return home


def library_path(torch: Path | None) -> str:
    """Where the programs find NVRTC, and mixd-torch libtorch with CUDA; not the toolkit's stub of the driver."""
    nvrtc = (str(path.parent) for place in sys.path for path in Path(place).glob("nvidia/*/lib/libnvrtc.so.*"))
    own = [place for place in os.environ.get("LD_LIBRARY_PATH", "").split(":") if "stubs" not in Path(place).parts]
    return ":".join(filter(None, [*([str(torch / "lib")] if torch else []), *own, next(nvrtc, "")]))


def main() -> None:
    """Checks, measures, reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", type=Path, default=Path(".gpu-check"), help="what `make gpu-pack` made")
    parser.add_argument("--out", type=Path, default=Path("benches/results"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--quick", action="store_true", help="each thing once, briefly: for a driver that runs on the processor")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(END, exit=True)

    def late(*_: object) -> None:
        raise TimeoutError("it took too long")

    signal.signal(signal.SIGALRM, late)
    checks = Checks(options.out, (options.pack / "commit").read_text().strip())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = folder / "site"
        wheel = next(options.pack.glob("mixd-*.whl"))
        ran([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", site, wheel], 60)
        mixd, tests = site / "bin" / "mixd", folder / "mixd-tests"
        # What is carried may have lost its modes.
        for name, to in {"mixd-torch": mixd.with_name("mixd-torch"), "mixd-tests": tests}.items():
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(options.pack / name, to)
                to.chmod(0o755)
        sys.path.insert(0, str(site))
        with_torch, torch_home = False, None
        if not options.no_torch:
            with contextlib.suppress(ImportError):
                import torch

                with_torch, torch_home = torch.cuda.is_available(), Path(torch.__file__).parent
        os.environ["LD_LIBRARY_PATH"] = library_path(torch_home)
        print(f"LD_LIBRARY_PATH={os.environ['LD_LIBRARY_PATH']}", file=sys.stderr)
        has_torch_mixer = with_torch and mixd.with_name("mixd-torch").exists()
        missing = [name for name in ("mixd-tests", "mixd-torch") if not (options.pack / name).exists()]
        if missing:
            checks.note(f"what needs {' and '.join(missing)}", "left out")
        data = many(folder, 2 if options.quick else 48)
        if "library" in options.only and tests.exists():
            with checks.check("the property, the goldens and the driver's objects (tests of the library)", 150):
                found = {"MIXD_GOLDEN": str(Path(__file__).resolve().parent.parent / "tests" / "golden")}
                for line in ran([tests, "mix::", "cuda::"], 150, MIXD_TEST_DEVICE="1", **found).splitlines():
                    if line.startswith("left out"):
                        checks.note(line, "left out")
        if "replays" in options.only:
            replays(checks, mixd, folder, options.quick, has_torch_mixer)
        if "torch" in options.only and with_torch:
            with checks.check("the package and torch, to the end of their checks", 240):
                through_torch(checks, mixd, folder, site)
        elif "torch" in options.only:
            checks.note("what needs torch on the device", "left out")
        if "speed" in options.only:
            speed(checks, mixd, data, options.quick)
        if "train" in options.only and with_torch:
            in_the_trainer(checks)
            if checks.has_time("training loops"):
                with checks.check("training loops", 90):
                    try:
                        trains(checks, mixd, folder, data)
                    except (ImportError, torch.OutOfMemoryError) as error:
                        checks.note(f"training loops: {error}", "left out")
            torch.cuda.empty_cache()
        elif "train" in options.only:
            checks.note("training, which needs torch on the device", "left out")
        for mixer in ("cuda", "torch", "cpu"):
            train = ["train", "--device=cuda", f"--mixer={mixer}", "--epochs=3", "--batch-size=16", "--lr=0.02"]
            name = f"mixd {' '.join(train[:3])}"
            if "train" in options.only and has_torch_mixer and checks.has_time(name):
                with checks.check(name):
                    print(ran([mixd, *train, "--data", SAMPLE_DATA], 60))
    print(f"{checks.wrong} wrong")
    sys.exit(1 if checks.wrong else 0)


def speed(checks: Checks, mixd: Path, data: Path, quick: bool) -> None:
    """What a batch costs, by its way."""
    figures, rows = {}, [["", *COLUMNS]]
    for name, more in SPEED.items():
        if not checks.has_time(f"measuring {name}"):
            continue
        # Every round has its own ceilings.
        where = [] if any(option.startswith("--device=") for option in more) else ["--device=cuda"]
        briefly = ["--rounds=1", "--size=32"] if quick else ["--rounds=3"]
        with checks.check(f"measuring {name}"):
            figures[name] = bench(mixd, data, 0.1 if quick else 1.5, [*where, "--ceiling", *briefly, *more])
            rows.append([name, *(text(figures[name]) for text in COLUMNS.values())])
            checks.device = (figures[name]["device"] or {}).get("name") or checks.device
        # What is there is written down, whatever comes.
        report("gpu", checks.out, checks.head(), rows, figures, quiet=True)
    report("gpu", checks.out, checks.head(), rows, figures)


if __name__ == "__main__":
    main()
