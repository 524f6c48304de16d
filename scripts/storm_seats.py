"""The trainers of a storm: each seat has one process at a time, knows what it must report next, and judges how it ends."""

import dataclasses
import json
import signal
import time

from processes import Child, Place, flags, wait_for
from storm_table import Table

FEEDS: dict[str, dict[str, object]] = {
    "lesson": {"batch_size": 8, "size": 32, "seed": 1},
    "imagenette": {"recipe": "imagenette", "batch_size": 8, "size": 32, "seed": 2, "dtype": "u8"},
    "torchvision-v1": {"recipe": "torchvision-v1", "batch_size": 8, "size": 40, "seed": 3, "slots": 5},
    "torchvision-v2": {"recipe": "torchvision-v2", "batch_size": 8, "size": 40, "seed": 4},
}
# Of the validation split, whose images stay: a checksum of a round has no rows.
RUST: dict[str, dict[str, object]] = {
    "lesson": {"split": "val", "shuffle": "true", "alpha": 0.4, "batch_size": 8, "size": 32, "seed": 5},
    "imagenette": {"split": "val", "recipe": "imagenette", "crop": "random_resized_crop", "batch_size": 8, "size": 32, "seed": 6},
}
ROUNDS, ROUND_IMAGES = 30, 64
# Seconds without progress, while all could run, after which a trainer hangs.
HANG = 30.0
# Seconds of this after which nothing that might wake a trainer again is done to it.
PATIENCE = 2.0
# Seconds for which the daemon holds a feed's first batches for trainers that come back.
HOLD = 12.0


@dataclasses.dataclass
class Counts:
    """What a storm has done and seen."""

    killed_trainers: int = 0
    killed_daemons: int = 0
    stops: int = 0
    drains: int = 0
    leaves: int = 0
    verified: int = 0
    rust_rounds: int = 0
    away: int = 0
    substituted: int = 0
    evictions: int = 0
    refusals: int = 0
    strangers: int = 0
    displaced: int = 0
    hangs: int = 0
    wrong: int = 0

    def failed(self) -> int:
        """The exit status."""
        return int(self.wrong > 0 or self.hangs > 0 or self.verified == 0 or self.rust_rounds == 0)

    def __str__(self) -> str:
        kills = f"{self.killed_trainers + self.killed_daemons} kills ({self.killed_trainers} of trainers, {self.killed_daemons} of daemons)"
        files = f"{self.away} times an image away ({self.substituted} rows with substitutes)"
        verified = f"{self.verified} batches verified and {self.rust_rounds} rounds of the trainers in Rust"
        ends = f"{self.stops} stops, {self.drains} drains, {self.leaves} leaves, {self.evictions} evictions, {self.displaced} displaced"
        asked = f"{self.refusals} refusals, {self.strangers} strangers"
        return f"{kills}, {ends}, {asked}, {files}; {verified}; {self.wrong} wrong, {self.hangs} hangs"


@dataclasses.dataclass
class Storm:
    """What seats need to know of the storm to judge: its counts, and what has happened so far."""

    place: Place
    counts: Counts
    away: set[int] = dataclasses.field(default_factory=set)
    """Images that have been away."""
    deaths: int = 0
    """Daemons that are gone, killed or drained."""
    drains: int = 0

    def wrong(self, who: str, what: str) -> None:
        """Counts and prints it."""
        self.counts.wrong += 1
        if self.counts.wrong <= 20:
            print(f"storm: WRONG: {who}: {what}", flush=True)


class Seat:
    """One trainer after the other; `share` names the feed that it reads with others."""

    # Whether it may be started while no daemon serves.
    waits_for_daemons = False

    def __init__(self, name: str, share: str | None = None) -> None:
        self.name, self.share = name, share
        self.child: Child | None = None
        self.leaving = self.killed = False
        # When the next process may start; when a stopped one goes on.
        self.start_at, self.resume_at = 0.0, float("inf")
        # Seconds in which it could have had progress, and whether this process has had any.
        self.stall, self.has_read, self.last_read = 0.0, False, 0.0
        self.deaths = self.drains = 0
        self.ended_because = ""

    def started(self, child: Child, storm: Storm) -> None:
        """A new process has the seat."""
        self.child, self.leaving, self.killed, self.stall, self.has_read = child, False, False, 0.0, False
        self.deaths, self.drains, self.ended_because, self.resume_at = storm.deaths, storm.drains, "", float("inf")

    def progress(self) -> None:
        """The process has got on."""
        self.stall, self.has_read, self.last_read = 0.0, True, time.monotonic()

    @property
    def runs(self) -> bool:
        """Whether a process has the seat that is not on its way out."""
        return self.child is not None and not (self.leaving or self.killed)

    @property
    def may_be_hit(self) -> bool:
        """Whether to kill or stop it would hide no hang."""
        return self.runs and not self.child.stopped and self.stall < PATIENCE

    def kill(self) -> None:
        """Kills the process."""
        self.killed = True
        self.child.signal(signal.SIGKILL)

    def stop(self, until: float) -> None:
        """Stops the process for some time."""
        self.child.signal(signal.SIGSTOP)
        self.resume_at = until

    def resume(self) -> None:
        """Lets the stopped process go on."""
        self.child.signal(signal.SIGCONT)
        self.resume_at = float("inf")

    def begin(self, storm: Storm, draw: float) -> None:
        """Starts a process; `draw` is a number in [0, 1)."""
        raise NotImplementedError

    def leave(self) -> None:
        """Asks the process for its end."""
        raise NotImplementedError

    def heard(self, line: bytes, storm: Storm) -> None:
        """Judges a line."""
        raise NotImplementedError

    def ended(self, storm: Storm) -> None:
        """Judges the end of the process, whose output is at its end, and frees the seat."""
        code, child, self.child = self.child.process.wait(), self.child, None
        child.exit_code()
        self.ended_because = self.ended_because or child.last_words()
        if self.killed or code == -signal.SIGKILL:
            if not self.killed:
                storm.wrong(self.name, "killed by another than the storm (for lack of memory?)")
        elif self.leaving and code == 0:
            storm.counts.leaves += 1
        elif not self.excused(code, storm):
            storm.wrong(self.name, f"exited with {code}: {self.ended_because}")

    def excused(self, code: int, storm: Storm) -> bool:
        """Whether the storm has made the process end by itself as it did; counts it."""
        raise NotImplementedError


class PythonSeat(Seat):
    """A trainer over the package, whose every batch is looked at."""

    waits_for_daemons = True

    def __init__(self, name: str, table: Table, share: str | None = None, **sharing: object) -> None:
        super().__init__(name, share)
        self.table, self.sharing = table, sharing
        self.latest = sharing.get("delivery") == "latest"
        self.next: tuple[int, int] | None = None
        self.start: tuple[int, int] | None = None
        self.generation = 0
        # Class, text and attributes of the error that ended the process.
        self.error: list = []

    def begin(self, storm: Storm, draw: float) -> None:
        place = int(draw * self.table.epochs * self.table.batches)
        self.start = None if self.share else divmod(place, self.table.batches)
        how = {"share": self.share, "generation": self.generation, **self.sharing} if self.share else {"start": self.start}
        options = dict(self.table.options)
        child = storm.place.trainer(self.name, options=options, epochs=self.table.epochs, step_ms=2, hold=not self.latest, **how)
        self.next, self.error = None, []
        self.started(child, storm)

    def heard(self, line: bytes, storm: Storm) -> None:
        kind, *rest = json.loads(line)
        if kind == "open":
            self._opened(*rest, storm)
        elif kind == "batch":
            self._batch([kind, *rest], storm)
        elif kind == "torn":
            storm.wrong(self.name, f"a batch changed in its hands: {rest}")
        else:
            self.error = rest
            self.ended_because = f"{rest[0]}: {rest[1]} {rest[2]}"

    def _opened(self, generation: int, epoch: int, index: int, storm: Storm) -> None:
        self.generation = max(self.generation, generation)
        expected = self.start
        self.next, self.start = (epoch, index), None if self.share else (0, 0)
        if expected and expected != self.next:
            storm.wrong(self.name, f"opened at {self.next}, not {expected}")

    def _batch(self, line: list, storm: Storm) -> None:
        at, expected = (line[1], line[2]), self.next
        if expected is None or (at < expected if self.latest else at != expected):
            storm.wrong(self.name, f"batch {at}, not {expected}")
        why, substituted = self.table.error(line, storm.away)
        if why:
            storm.wrong(self.name, f"batch {at}: {why}")
        self.next = (at[0], at[1] + 1) if at[1] + 1 < self.table.batches else (at[0] + 1, 0)
        storm.counts.verified += 1
        storm.counts.substituted += substituted
        self.progress()

    def leave(self) -> None:
        self.leaving = True
        self.child.signal(signal.SIGUSR1)

    def excused(self, code: int, storm: Storm) -> bool:
        if code != 3 or not self.error:
            return False
        name, text, attributes = self.error
        if name == "EvictedError" and self.share and attributes["gap_s"] > 0.9 * self.sharing.get("max_lag", float("inf")):
            storm.counts.evictions += 1
        elif storm.drains > self.drains and (attributes["failed"] is False or attributes["kind"] == "stopping"):
            # One that comes back finds the next daemon on its way out.
            pass
        elif self.share and storm.deaths > self.deaths and (attributes["next"] or "before this one came back" in text):
            # README.md: one that comes back too late, or finds a newcomer's feed, is refused by name of the place.
            storm.counts.displaced += 1
        else:
            return False
        return True


class Opener(PythonSeat):
    """Asks once for a feed that no memory suffices for."""

    def begin(self, storm: Storm, draw: float) -> None:
        slots, rows, side = [(1024, 4096, 512), (64, 2048, 1024), (1024, 65536, 8192), (512, 16384, 96)][int(draw * 4)]
        options = {**self.table.options, "slots": slots, "batch_size": rows, "size": side}
        self.started(storm.place.trainer(self.name, options=options, epochs=1), storm)

    def heard(self, line: bytes, storm: Storm) -> None:
        kind, *self.error = json.loads(line)
        if kind != "error":
            storm.wrong(self.name, f"a feed was opened for which there is no memory: {line[:200]!r}")
            return
        self.ended_because = f"{self.error[0]}: {self.error[1]} {self.error[2]}"

    def excused(self, code: int, storm: Storm) -> bool:
        if code != 3 or not self.error or self.error[0] != "NoRoomError":
            return False
        storm.counts.refusals += 1
        return True


class RustTable:
    """Checksums of the rounds of `mixd bench-trainer`, each of everything read so far, from an undisturbed daemon."""

    def __init__(self, place: Place, options: dict[str, object]) -> None:
        self.options = options
        trainer, lines, self.checksums = self.start(place, "reference"), [], []

        def rounds() -> bool:
            lines.extend(trainer.lines() or [])
            while lines:
                if (report := json.loads(lines.pop(0))) != "counting":
                    self.checksums += [report["round"]["checksum"]] if "round" in report else []
                    trainer.write("\n")
            return len(self.checksums) > ROUNDS

        wait_for("an undisturbed trainer in Rust has read", rounds, 120.0)
        trainer.reap()

    def start(self, place: Place, name: str) -> Child:
        """A trainer that reads a round for each line of its standard input."""
        how = ["--touch=all", "--warmup=2", f"--images={ROUND_IMAGES}", "--seconds=0", "--reconnect=90", "--start=0,0"]
        command = [place.mixd, "bench-trainer", "--socket", place.socket, *how, *flags(self.options)]
        return Child(command, place.folder / f"{name}.log", place.env)


class RustSeat(Seat):
    """A trainer over the client in Rust; it leaves after its last round."""

    # Seconds between two rounds.
    PAUSE = 0.05

    def __init__(self, name: str, table: RustTable) -> None:
        super().__init__(name)
        self.table, self.round, self.ask_at = table, 0, float("inf")

    def begin(self, storm: Storm, draw: float) -> None:
        self.round, self.ask_at = 0, float("inf")
        self.started(self.table.start(storm.place, self.name), storm)

    def heard(self, line: bytes, storm: Storm) -> None:
        report = json.loads(line)
        self.progress()
        if report == "counting":
            return
        if "round" in report:
            found, expected = report["round"]["checksum"], self.table.checksums[self.round]
            if found != expected:
                storm.wrong(self.name, f"round {self.round}: checksum {found}, not {expected}")
            storm.counts.rust_rounds += 1
            self.round += 1
        self.ask_at = time.monotonic() + self.PAUSE

    def ask(self) -> None:
        """Asks for the next round, or after the last one for the end."""
        self.ask_at = float("inf")
        if self.round < ROUNDS:
            self.child.write("\n")
        else:
            self.leave()

    def leave(self) -> None:
        self.leaving = True
        self.child.close_input()

    def excused(self, code: int, storm: Storm) -> bool:
        words = self.ended_because
        unborn = not self.has_read and storm.deaths > self.deaths and ("no daemon answers" in words or "is gone" in words)
        return code == 1 and (unborn or (storm.drains > self.drains and ("the feed ended" in words or "opens no more feeds" in words)))
