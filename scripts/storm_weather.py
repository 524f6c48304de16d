"""The events of a storm, drawn before it begins, and the loop that lets them happen and listens to everyone meanwhile."""

import contextlib
import math
import random
import selectors
import signal
import socket
import subprocess
import time
from pathlib import Path

from processes import Child, Place
from storm_seats import HANG, HOLD, PATIENCE, Counts, Opener, Seat, Storm

# Seconds between two events, in the mean, and how often each kind comes among them.
INTERVAL = 0.18
KINDS = {"kill": 44, "kill_daemon": 9, "stop": 16, "stop_daemon": 5, "leave": 10, "late": 5, "open": 4, "garbage": 5, "away": 7, "drain": 2}
# A restarted daemon is one of these: batches depend on none of it.
DAEMONS = (
    ["--cache=off"],
    ["--cache=off", "--workers=1"],
    ["--cache=auto", "--workers=3"],
    ["--cache=2M"],
    ["--cache-file", "{folder}/rows"],
)
# Seconds within which a daemon that was asked to end has ended.
DRAIN_MAX = 5.0


class Weather:
    """The storm itself. `victims` are the images that may go away, by sample."""

    def __init__(self, place: Place, seats: list[Seat], victims: dict[int, Path], rng: random.Random, seconds: float) -> None:
        self.counts = Counts()
        self.storm = Storm(place, self.counts)
        self.place, self.seats, self.victims, self.rng = place, seats, victims, rng
        self.events: list[tuple[float, str, float, float]] = []
        at = 0.0
        while (at := at - INTERVAL * math.log(1 - rng.random())) < seconds:
            self.events.append((at, rng.choices(list(KINDS), KINDS.values())[0], rng.random(), rng.random()))
        self.restarts = random.Random(rng.random())
        self.daemon: Child | None = None
        self.serves = self.daemon_killed = False
        self.daemon_stall, self.drain_by = 0.0, math.inf
        self.daemon_start_at, self.daemon_resume_at, self.serves_since = 0.0, math.inf, math.inf
        self.away: dict[int, float] = {}
        self.late_until = 0.0
        self.strangers: list[tuple[float, socket.socket]] = []
        self.openers = 0
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """The storm, then a calm in which each trainer must have progress, then everyone's orderly end."""
        start = time.monotonic()
        while self.events:
            self._turn()
            while self.events and self.events[0][0] <= time.monotonic() - start:
                _, kind, which, how = self.events.pop(0)
                getattr(self, "_" + kind)(which, how)
        for seat in self.seats:
            seat.has_read = False
        self._until("each trainer reads again", lambda: all(seat.has_read for seat in self.seats if not isinstance(seat, Opener)))
        for seat in self.seats:
            seat.start_at = math.inf
            if seat.runs:
                seat.leave()
        self._until("all trainers have left", lambda: not any(seat.child for seat in self.seats))
        self._until("the daemon serves", lambda: self._daemon_runs)
        self.daemon_start_at = math.inf
        self._end_daemon()
        self._until("the daemon has ended", lambda: not self.daemon)

    def _until(self, what: str, done) -> None:
        """Turns until something is so, without new events. What hangs is found by the turns."""
        end = time.monotonic() + 2 * HANG
        while not done():
            self._turn()
            if time.monotonic() > end:
                self.counts.hangs += 1
                print(f"storm: HANG: not within {2 * HANG:.0f} s: {what}", flush=True)
                return

    def _turn(self) -> None:
        """Listens for a moment, then does what is due."""
        before = time.monotonic()
        for key, _ in self.selector.select(0.02):
            self._listen(key.fileobj, key.data)
        now = time.monotonic()
        self._daemon_turn(now)
        for sample in [sample for sample, until in self.away.items() if until <= now]:
            self._bring_back(sample)
        for _, stranger in (gone := [stranger for stranger in self.strangers if stranger[0] <= now]):
            stranger.close()
        self.strangers = [stranger for stranger in self.strangers if stranger not in gone]
        for seat in list(self.seats):
            if seat.child and seat.resume_at <= now:
                seat.resume()
            if getattr(seat, "ask_at", math.inf) <= now and seat.runs:
                seat.ask()
            if seat.child is None and seat.start_at <= now and self._may_begin(seat):
                seat.begin(self.storm, self.restarts.random())
                self.selector.register(seat.child, selectors.EVENT_READ, seat)
        self._stalls(min(time.monotonic() - before, 0.5))

    def _listen(self, child: Child, seat: Seat | None) -> None:
        """Takes what a process says; at the end of its output it has ended."""
        lines = child.lines()
        if lines is None:
            self.selector.unregister(child)
            return self._daemon_ended() if seat is None else self._seat_ended(seat)
        if seat is None:
            goes = self.daemon_killed or self.drain_by < math.inf
            if not goes and any(line.startswith(b"mixd: serving") for line in lines):
                self.serves, self.serves_since, self.daemon_stall = True, time.monotonic(), 0.0
            return None
        for line in lines:
            seat.heard(line, self.storm)
        return None

    def _seat_ended(self, seat: Seat) -> None:
        seat.ended(self.storm)
        if isinstance(seat, Opener):
            self.seats.remove(seat)
        elif seat.start_at < math.inf:
            seat.start_at = time.monotonic() + 0.4 * self.restarts.random()

    def _may_begin(self, seat: Seat) -> bool:
        """Newcomers of a share give those time who come back to the daemon, and would be refused beside a newcomer's feed."""
        if not seat.share:
            return self.serves or seat.waits_for_daemons
        others = [other for other in self.seats if other.share == seat.share and other.child and not other.child.stopped]
        back = all(other.last_read > self.serves_since for other in others if other.has_read)
        return self.serves and (back or time.monotonic() - self.serves_since > 3.0)

    # The daemon.

    def _daemon_turn(self, now: float) -> None:
        if self.daemon is None and self.daemon_start_at <= now:
            for sample in list(self.away):
                self._bring_back(sample)
            options = [word.format(folder=self.place.folder) for word in self.restarts.choice(DAEMONS)]
            self.daemon, self.serves, self.daemon_killed, self.drain_by = self.place.daemon(*options), False, False, math.inf
            self.daemon_stall, self.daemon_resume_at = 0.0, math.inf
            self.selector.register(self.daemon, selectors.EVENT_READ, None)
        if self.daemon and self.daemon_resume_at <= now:
            self.daemon.signal(signal.SIGCONT)
            self.daemon_resume_at = math.inf
        if self.daemon and self.drain_by <= now:
            self.storm.wrong("daemon", f"has not ended within {DRAIN_MAX} s of SIGTERM")
            self.daemon_killed, self.drain_by = True, math.inf
            self.daemon.signal(signal.SIGKILL)

    def _daemon_ended(self) -> None:
        code, child, self.daemon = self.daemon.process.wait(), self.daemon, None
        child.exit_code()
        if not self.daemon_killed and (code != 0 or self.drain_by == math.inf):
            self.storm.wrong("daemon", f"exited with {code}: {child.last_words()}")
            self._daemon_goes()
        self.drain_by = math.inf
        if self.daemon_start_at < math.inf:
            self.daemon_start_at = time.monotonic() + 0.3 * self.restarts.random()

    @property
    def _daemon_runs(self) -> bool:
        return bool(self.daemon) and self.serves and not self.daemon.stopped

    @property
    def _daemon_may_be_hit(self) -> bool:
        """Whether its end, or a pause of it, would hide no hang, and disturbs nobody who is being late."""
        stuck = any(seat.child and seat.stall > (HOLD if seat.share else PATIENCE) for seat in self.seats)
        there = self.daemon and not (self.daemon_killed or self.daemon.stopped) and self.drain_by == math.inf
        return bool(there) and not stuck and time.monotonic() > self.late_until and self.daemon_stall < PATIENCE

    # Events: `which` chooses who it happens to, `how` for how long.

    def _choose(self, which: float, among) -> Seat | None:
        found = [seat for seat in self.seats if seat.may_be_hit and among(seat)]
        late = time.monotonic() < self.late_until
        found = [seat for seat in found if not (late and seat.share == "lossless")]
        return found[int(which * len(found))] if found else None

    def _kill(self, which: float, how: float) -> None:
        if seat := self._choose(which, lambda seat: True):
            seat.kill()
            self.counts.killed_trainers += 1

    def _kill_daemon(self, which: float, how: float) -> None:
        if self._daemon_may_be_hit:
            self._daemon_goes()
            self.daemon_killed = True
            self.daemon.signal(signal.SIGKILL)
            self.counts.killed_daemons += 1

    def _daemon_goes(self) -> None:
        """From now on who asks it for anything may hear that it is gone."""
        self.storm.deaths += 1
        self.serves, self.serves_since = False, math.inf

    def _stop(self, which: float, how: float) -> None:
        if seat := self._choose(which, lambda seat: True):
            seat.stop(time.monotonic() + 0.02 + 0.7 * how)
            self.counts.stops += 1

    def _stop_daemon(self, which: float, how: float) -> None:
        if self._daemon_may_be_hit and self.serves:
            self.daemon.signal(signal.SIGSTOP)
            self.daemon_resume_at = time.monotonic() + 0.02 + how
            self.counts.stops += 1

    def _leave(self, which: float, how: float) -> None:
        if seat := self._choose(which, lambda seat: seat.has_read):
            seat.leave()

    def _late(self, which: float, how: float) -> None:
        """One of the lossless feed's trainers is stopped for longer than its lag may be, while the others read."""
        readers = [seat for seat in self.seats if seat.share == "lossless" and seat.may_be_hit and seat.has_read]
        if len(readers) > 1 and self._daemon_runs and time.monotonic() > self.late_until:
            until = time.monotonic() + 2 * readers[0].sharing["max_lag"]
            readers[int(which * len(readers))].stop(until)
            self.late_until = until + 1.0
            self.counts.stops += 1

    def _open(self, which: float, how: float) -> None:
        self.openers += 1
        self.seats.append(Opener(f"opener-{self.openers}", self.seats[0].table))

    def _garbage(self, which: float, how: float) -> None:
        """Strangers connect to the daemon and send what is no request, or nothing, and stay for a moment."""
        noise = random.Random(how)
        for nth in range(1 + int(which * 30)):
            stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stranger.setblocking(False)
            # There may be no daemon, or one whose queue of connections is full.
            with contextlib.suppress(OSError):
                stranger.connect(str(self.place.socket))
                stranger.send((b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[nth % 2] + noise.randbytes(nth * 100 % 1000))
                self.counts.strangers += 1
            self.strangers.append((time.monotonic() + how, stranger))

    def _away(self, which: float, how: float) -> None:
        sample = sorted(self.victims)[int(which * len(self.victims))]
        if self._daemon_runs and sample not in self.away:
            self.storm.away.add(sample)
            self.victims[sample].rename(self.place.folder / f"away-{sample}")
            self.away[sample] = time.monotonic() + how
            self.counts.away += 1

    def _bring_back(self, sample: int) -> None:
        del self.away[sample]
        (self.place.folder / f"away-{sample}").rename(self.victims[sample])

    def _drain(self, which: float, how: float) -> None:
        if self._daemon_may_be_hit and self.serves:
            self.counts.drains += 1
            self._end_daemon()

    def _end_daemon(self) -> None:
        """Asks the daemon for its end; its feeds end in order."""
        self._daemon_goes()
        self.storm.drains += 1
        self.drain_by = time.monotonic() + DRAIN_MAX
        self.daemon.signal(signal.SIGTERM)

    # Hangs.

    def _stalls(self, seconds: float) -> None:
        """Adds to the time that each has had to get on, and reports who has not."""
        if self.daemon and not self.serves and not self.daemon.stopped and not self.daemon_killed:
            self.daemon_stall += seconds
            if self.daemon_stall > HANG:
                self._hangs("the daemon, which does not serve", self.daemon)
                self.daemon_killed = True
        if not self._daemon_runs:
            return
        for seat in self.seats:
            stopped = any(other.share == seat.share and other.child and other.child.stopped for other in self.seats if seat.share)
            if seat.child and not seat.child.stopped and not stopped and not seat.killed:
                seat.stall += seconds
                if seat.stall > HANG:
                    self._hangs(f"{seat.name}, next is {getattr(seat, 'next', None)}", seat.child)
                    seat.killed = True

    def _hangs(self, who: str, child: Child) -> None:
        """Counts and prints a hang, with what is known of it, and ends the process."""
        self.counts.hangs += 1
        tasks = [
            (task.joinpath("comm").read_text().strip(), task.joinpath("wchan").read_text())
            for task in Path(f"/proc/{child.pid}/task").iterdir()
        ]
        print(f"storm: HANG: {who}: {tasks} {child.last_words()}", flush=True)
        try:
            print(self.place.output("status", "--socket", self.place.socket), flush=True)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"storm: no status: {error}", flush=True)
        child.signal(signal.SIGKILL)
