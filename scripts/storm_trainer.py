"""A trainer of storm.py and soak.py: reads a feed over the package and reports every batch, a line of JSON each.

Its one argument is a JSON object: `socket`; `options` of the feed; `start`, epoch and index of a private feed's first batch; `share` and
`delivery`, `max_lag`; `epochs` of the table that it reads: a private feed then begins again at (0, 0), and one that is shared goes on under
the share's next generation (`share` is followed by `-` and its number, `generation` at first); `once` ends it there instead; `step_ms`, the
milliseconds of its step; `hold`, whether it keeps some batches while it reads on and looks at them again.

Lines: ["open", generation, epoch, index]; ["batch", epoch, index, batches, columns, digests]; ["torn", epoch, index] of a batch that changed in
its hands; ["error", class, text, attributes], after which it exits with 3. SIGUSR1 makes it leave, with 0.
"""

import collections
import hashlib
import itertools
import json
import os
import signal
import sys
import time

import mixd

COLUMNS = ("sample_id", "partner_id", "label_a", "label_b", "partner", "lam", "flip", "cut", "crop")
# Seconds for which it looks for a daemon, and waits for the next one.
PATIENCE = 90.0


# When this trainer had its last batches: it is evicted for no less than `max_lag` between two of them, or since the last.
times: collections.deque[float] = collections.deque(maxlen=5)


class Leave(BaseException):
    """The harness asks for the end."""

    asked = False


def leave(*_: object) -> None:
    """Interrupts any wait. Where Python ignores exceptions (a finalizer), the next batch is the last."""
    Leave.asked = True
    raise Leave


def report(*line: object) -> None:
    """Writes a line in one piece: shorter than PIPE_BUF, it is there as a whole or not at all, also where this process is killed."""
    text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    assert len(text) < 4096, f"a line of {len(text)} bytes"
    os.write(1, text)


def contents(batch: mixd.Batch) -> tuple[list[str], list[str]]:
    """The batch's columns in hexadecimal, and for each row a digest of its columns and pixels."""
    x, rows = memoryview(batch.x).cast("B"), len(batch)
    columns = [memoryview(getattr(batch, name)).cast("B") for name in COLUMNS]

    def row(at: int) -> str:
        hashed = hashlib.blake2b(digest_size=8)
        for part in (x, *columns):
            size = part.nbytes // rows
            hashed.update(part[at * size : (at + 1) * size])
        return hashed.hexdigest()

    return [column.hex() for column in columns], [row(at) for at in range(rows)]


def opened(job: dict, generation: int, start: object) -> mixd.Feed:
    """Opens the feed. A daemon that is gone or going is waited for; another may take its place at any moment."""
    share = {"share": f"{job['share']}-{generation}"} if job.get("share") else {}
    share |= {name: job[name] for name in ("delivery", "max_lag") if name in job}
    end = time.monotonic() + PATIENCE
    while True:
        try:
            server = mixd.connect(job["socket"], reconnect=PATIENCE)
            return server.feed(**job["options"], **share, start=start, world_size=1, rank=0)
        except (mixd.NoDaemonError, mixd.DaemonGoneError, mixd.RefusedError) as error:
            if getattr(error, "kind", "stopping") != "stopping" or time.monotonic() > end:
                raise
            time.sleep(0.02)


def read(job: dict) -> None:
    """Reads until it is asked to leave."""
    generation, start = job.get("generation", 0), job.get("start", "now")
    while True:
        with opened(job, generation, tuple(start) if isinstance(start, list) else start) as feed:
            report("open", generation, *feed.place)
            held = collections.deque()
            try:
                follow(job, feed, held)
            finally:
                # An evicted trainer keeps what it holds, too.
                recheck(held, 0)
        if job.get("once"):
            return
        generation, start = (generation + 1, "now") if job.get("share") else (0, (0, 0))


def follow(job: dict, feed: mixd.Feed, held: collections.deque) -> None:
    """Reads to the end of the table's last epoch."""
    while feed.place.epoch < job["epochs"]:
        batch = feed.next_batch()
        times.append(time.monotonic())
        if batch.epoch >= job["epochs"]:
            # The end was skipped.
            return
        columns, digests = contents(batch)
        report("batch", batch.epoch, batch.index, batch.batches, columns, digests)
        if job.get("hold") and batch.index % 5 == 0:
            held.append((batch, digests))
        recheck(held, 2)
        if Leave.asked:
            raise Leave
        if job.get("step_ms"):
            time.sleep(job["step_ms"] / 1000)


def recheck(held: collections.deque, keep: int) -> None:
    """Looks again at the oldest batches that are held, and drops all but `keep`."""
    while len(held) > keep:
        batch, digests = held.popleft()
        if contents(batch)[1] != digests:
            report("torn", batch.epoch, batch.index)


def run() -> int:
    """Reads until the end, and returns the exit status."""
    try:
        read(json.loads(sys.argv[1]))
    except mixd.MixdError as error:
        attributes = {name: getattr(error, name, None) for name in ("kind", "next", "failed", "need_bytes")}
        times.append(time.monotonic())
        gap = max((after - before for before, after in itertools.pairwise(times)), default=0.0)
        report("error", type(error).__name__, str(error)[:1000], {**attributes, "gap_s": gap})
        return 3
    return 0


def main() -> int:
    """Runs until the end, or until it is asked to leave, which it is once at most."""
    signal.signal(signal.SIGUSR1, leave)
    try:
        code = run()
        # The interpreter's own end would give the signal its default back, which kills.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    except Leave:
        code = 0
    return code


if __name__ == "__main__":
    sys.exit(main())
