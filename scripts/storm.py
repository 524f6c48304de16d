#!/usr/bin/env python3
"""Kills, stops and starves a daemon and its trainers at random, and checks every batch that any of them sees.

A daemon serves a copy of the data set to eight trainers: private feeds, a shared lossless and a shared latest one, in Python
(storm_trainer.py) and in Rust (`mixd bench-trainer`). Meanwhile trainers and the daemon are killed, stopped and started again, trainers
leave and join, one keeps others waiting until it is evicted, feeds are asked for that no memory suffices for, and image files come and go.

Each batch must have its place (the next one, across daemons, too; `latest` may skip), the columns of `mixd plan` and the pixels that an
undisturbed daemon gave (storm_table.py). The trainers in Rust report a checksum of whole rounds, which must be that of an undisturbed one.
That daemon is of the same build: an error that every batch has is not found here. `make check-replay` compares pixels with Pillow.
A trainer hangs that has no progress in 30 s in which it, the daemon and those who share its feed could run. What ends by itself must have
a reason that the storm gave it. Exits with 1 where anything was wrong or hung, or nothing was verified.
"""

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from processes import Child, Place, drawn_seed, parser, wait_for, watchdog
from storm_seats import FEEDS, RUST, PythonSeat, RustSeat, RustTable
from storm_table import Samples, Table
from storm_weather import Weather

EPOCHS = 4
# Seconds that the tables and the end may take beside the storm.
MARGIN = 240.0


def tables(place: Place, rng: random.Random) -> tuple[dict[str, Table], dict[str, RustTable], dict[int, Path]]:
    """What all feeds must deliver, and two images that may go away, of different classes, which no row mixes with each other."""
    samples = Samples(place.data)
    of_feeds = {name: Table(place, samples, options, EPOCHS) for name, options in FEEDS.items()}
    pairs = {row.samples for table in of_feeds.values() for rows in table.rows.values() for row in rows}
    while True:
        one, other = rng.sample(range(len(samples.paths)), 2)
        apart = samples.paths[one].parent != samples.paths[other].parent
        if apart and (one, other) not in pairs and (other, one) not in pairs:
            break
    daemon = place.daemon("--cache=off")
    wait_for("a daemon serves", daemon.lines)
    for table in of_feeds.values():
        table.learn(place)
    of_rust = {name: RustTable(place, options) for name, options in RUST.items()}
    daemon.reap()
    for missing in (one, other):
        daemon = place.daemon("--cache=off")
        wait_for("a daemon serves", daemon.lines)
        path = samples.paths[missing].rename(place.folder / "away")
        for table in of_feeds.values():
            table.learn(place, missing)
        daemon.reap()
        path.rename(samples.paths[missing])
    return of_feeds, of_rust, {sample: samples.paths[sample] for sample in (one, other)}


def spoil(table: Table, what: str) -> None:
    """Makes a table expect what no daemon delivers."""
    row = table.rows[0, 3][5]
    if what == "digest":
        row.digest = f"{int(row.digest, 16) ^ 1:016x}"
    else:
        row.columns[0] = f"{int(row.columns[0], 16) ^ 1:08x}"


def main() -> int:
    """Runs it, and returns the exit status."""
    own = parser(__doc__, seconds=300.0)
    own.add_argument("--spoil", choices=["digest", "plan"], help="expect a wrong pixel or column of one row, to see the storm fail")
    options = own.parse_args()
    seed = drawn_seed("storm", options)
    watchdog(options.seconds + MARGIN)
    with tempfile.TemporaryDirectory(prefix="mixd-storm-") as folder:
        try:
            place = Place(Path(folder), options.mixd, Path(folder, "data"))
            shutil.copytree(options.data, place.data)
            of_feeds, of_rust, victims = tables(place, random.Random(seed))
            if options.spoil:
                spoil(of_feeds["imagenette"], options.spoil)
            shared = {"lossless": {"max_lag": 2.0}, "latest": {"delivery": "latest"}}
            seats = [
                PythonSeat("private-0", of_feeds["imagenette"]),
                PythonSeat("private-1", of_feeds["torchvision-v2"]),
                *(PythonSeat(f"lossless-{nth}", of_feeds["lesson"], "lossless", **shared["lossless"]) for nth in range(2)),
                *(PythonSeat(f"latest-{nth}", of_feeds["torchvision-v1"], "latest", **shared["latest"]) for nth in range(2)),
                *(RustSeat(f"rust-{nth}", table) for nth, table in enumerate(of_rust.values())),
            ]
            weather = Weather(place, seats, victims, random.Random(seed), options.seconds)
            start = time.monotonic()
            weather.run()
            print(f"storm: seed {seed}, {time.monotonic() - start:.0f} s: {weather.counts}", flush=True)
            return weather.counts.failed()
        finally:
            Child.reap_all()


if __name__ == "__main__":
    sys.exit(main())
