#!/usr/bin/env python3
"""Lets trainers come and go at one daemon, and fails where what the daemon uses grows.

In each cycle a few trainers open feeds (private, shared lossless, shared latest; finished and random views), read some batches, and are
killed or leave. Once the daemon has closed their feeds its memory, descriptors and threads are sampled. After a warm-up of a quarter of the
time, in which caches fill, the Theil-Sen slope of each (the median of the slopes between all pairs of samples) must stay below its limit:
1 MB of anonymous memory in 10 minutes, and nothing at all of shared memory, descriptors and threads. Exits with 1 where one does not, or where
there were too few samples.
"""

import dataclasses
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from processes import Child, Place, drawn_seed, parser, wait_for, watchdog
from storm_seats import FEEDS

# Growth in 10 minutes from which a run fails. Counts and pages are whole numbers: half a one is less than any growth, and more than rounding.
LIMITS = {"anonymous_kb": 1024.0, "shared_kb": 2.0, "descriptors": 0.5, "threads": 0.5}
SAMPLES_MIN = 20
# Pairs of samples that the slope looks at, at most.
SAMPLES_MAX = 600
SHARES: tuple[dict[str, object], ...] = ({}, {"share": "lossless"}, {"share": "latest", "delivery": "latest"})


@dataclasses.dataclass
class Sample:
    """What the daemon uses, at a moment in seconds since the start."""

    at: float
    anonymous_kb: int
    shared_kb: int
    rss_kb: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int, at: float) -> "Sample":
        """Reads /proc. `Pss_Shmem` shares what several processes have mapped between them, so that shared memory is read from `status`."""
        proc = Path("/proc", str(pid))
        sizes = dict(line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
        kb = {name: int(text.split()[0]) for name, text in {**sizes, "RssShmem": status["RssShmem"]}.items()}
        descriptors = len(list((proc / "fd").iterdir()))
        return cls(at, kb["Anonymous"], kb["RssShmem"], kb["Rss"], descriptors, int(status["Threads"]))


def slope(times: list[float], values: list[float]) -> float:
    """The Theil-Sen slope, in 1/s."""
    every = max(1, len(times) // SAMPLES_MAX)
    points = list(zip(times, values, strict=True))[::every]
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for at, a in enumerate(points) for b in points[at + 1 :]]
    return statistics.median(pairs)


class Soak:
    """A daemon and the trainers of one cycle after the other; `leak` trainers of each cycle stay, stopped, for good."""

    def __init__(self, place: Place, rng: random.Random, leak: int) -> None:
        self.place, self.rng, self.leak, self.left_behind = place, rng, leak, 0
        self.daemon = place.daemon("--cache=64M")
        wait_for("the daemon serves", self.daemon.lines)
        self.start, self.cycles, self.trainers, self.batches = time.monotonic(), 0, 0, 0

    def cycle(self) -> Sample:
        """Lets trainers come, read and go, and samples the daemon after them."""
        self.cycles += 1
        trainers = [self._come(nth) for nth in range(self.rng.randrange(2, 6))]
        enough = {trainer: self.rng.randrange(1, 60) for trainer in trainers}

        def read() -> bool:
            # Those, too, that have read enough: a trainer that cannot report holds up those that it shares a feed with.
            for trainer in enough:
                lines = trainer.lines()
                if lines is None or any(json.loads(line)[0] not in ("open", "batch") for line in lines):
                    raise ChildProcessError(f"a trainer ended: {lines} {trainer.last_words()}")
                enough[trainer] -= sum(line.startswith(b'["batch') for line in lines)
                self.batches += sum(line.startswith(b'["batch') for line in lines)
            return all(left <= 0 for left in enough.values())

        wait_for("each trainer has read its batches", read)
        for trainer in trainers[self.leak :]:
            self._go(trainer)
        for trainer in trainers[: self.leak]:
            trainer.signal(signal.SIGSTOP)
            self.left_behind += 1
        wait_for("the daemon has closed the feeds", lambda: self._readers() == self.left_behind)
        return Sample.of(self.daemon.pid, time.monotonic() - self.start)

    def _come(self, nth: int) -> Child:
        """A trainer of one of the feeds."""
        self.trainers += 1
        name = self.rng.choice(list(FEEDS))
        share = {} if nth < self.leak else self.rng.choice(SHARES)
        sharing = {**share, "share": f"{share['share']}-{name}-{self.cycles}"} if share else {"start": [self.rng.randrange(4), 0]}
        return self.place.trainer(f"trainer-{nth}", options={**FEEDS[name], "slots": 8}, epochs=1000, step_ms=1, hold=not share, **sharing)

    def _go(self, trainer: Child) -> None:
        """Kills it, or asks it to leave; then reads what it still has to say, so that it can."""
        if self.rng.random() < 0.5:
            trainer.reap()
            return
        trainer.signal(signal.SIGUSR1)
        wait_for("a trainer's output ends", lambda: trainer.lines() is None)
        code = trainer.process.wait(10.0)
        trainer.exit_code()
        if code != 0:
            raise ChildProcessError(f"a trainer that was asked to leave exited with {code}: {trainer.last_words()}")

    def _readers(self) -> int:
        return sum(len(feed["trainers"]) for feed in self.place.status()["feeds"])


def judge(samples: list[Sample]) -> list[str]:
    """Prints the growth of each figure; returns those that grow."""
    times, growing = [sample.at for sample in samples], []
    for name, limit in LIMITS.items():
        values = [float(getattr(sample, name)) for sample in samples]
        growth = 600.0 * slope(times, values)
        verdict = "grows" if growth >= limit else "ok"
        print(
            f"soak: {name:13} {values[0]:9.0f} to {values[-1]:9.0f}, {growth:+10.2f} in 10 minutes (limit {limit:g}): {verdict}", flush=True
        )
        growing += [name] if growth >= limit else []
    return growing


def main() -> int:
    """Runs it, and returns the exit status."""
    own = parser(__doc__, seconds=600.0)
    own.add_argument("--leak", type=int, default=0, help="trainers of each cycle that stay for good, to see the soak fail")
    options = own.parse_args()
    seed = drawn_seed("soak", options)
    watchdog(options.seconds + 120.0)
    with tempfile.TemporaryDirectory(prefix="mixd-soak-") as folder:
        try:
            soak = Soak(Place(Path(folder), options.mixd, options.data), random.Random(seed), options.leak)
            samples = []
            while time.monotonic() - soak.start < options.seconds:
                samples.append(soak.cycle())
            counted = [sample for sample in samples if sample.at > options.seconds / 4]
            print(f"soak: {soak.cycles} cycles, {soak.trainers} trainers, {soak.batches} batches, {len(counted)} samples after the warm-up")
            if len(counted) < SAMPLES_MIN:
                print(f"soak: too few samples to judge by (at least {SAMPLES_MIN}; run it for longer)")
                return 1
            return int(bool(judge(counted)))
        finally:
            Child.reap_all()


if __name__ == "__main__":
    sys.exit(main())
