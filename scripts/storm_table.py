"""What the batches of a storm must be: plans of `mixd plan`, a process of its own, and digests of what an undisturbed daemon delivered.

Image files go away during a storm. A row whose image, or whose partner's, is such a file may also be made of the substitute that README.md
documents, the next image of the class: what that gives was read from a daemon that missed this file for all of its life.
"""

import dataclasses
import json
import struct
from pathlib import Path

from processes import Child, Place, flags, wait_for
from storm_trainer import COLUMNS

FORMATS = dict(zip(COLUMNS, ("I", "I", "q", "q", "i", "f", "B", "4i", "4i"), strict=True))
SAMPLE, PARTNER, CROP = (COLUMNS.index(name) for name in ("sample_id", "partner_id", "crop"))


class Samples:
    """The train split as the index numbers it: by class, then by file name."""

    def __init__(self, data: Path) -> None:
        self.paths = sorted((path for path in data.glob("train/*/*") if path.is_file()), key=lambda path: (path.parent.name, path.name))

    def substitute(self, sample: int) -> int:
        """The next image of its class."""
        of_class = [at for at, path in enumerate(self.paths) if path.parent == self.paths[sample].parent]
        return of_class[(of_class.index(sample) + 1) % len(of_class)]


@dataclasses.dataclass
class Row:
    """A row as the plan has it (each column in hexadecimal), its digest, and its digest without each image that may be missing."""

    samples: tuple[int, int]
    columns: list[str]
    digest: str = ""
    without: dict[int, str] = dataclasses.field(default_factory=dict)


class Table:
    """All batches of a feed's first `epochs` epochs."""

    def __init__(self, place: Place, samples: Samples, options: dict[str, object], epochs: int) -> None:
        self.options, self.epochs, self.samples = options, epochs, samples
        self.rows: dict[tuple[int, int], list[Row]] = {}
        for epoch in range(epochs):
            lines = place.output("plan", "--json", "--resolve", "--data", place.data, f"--epoch={epoch}", *flags(options)).splitlines()
            self.batches = len(lines)
            for plan in map(json.loads, lines):
                self.rows[plan["epoch"], plan["index"]] = [planned(plan, at) for at in range(plan["len"])]

    def learn(self, place: Place, missing: int | None = None) -> None:
        """Reads the digests from the daemon that serves now, to which the image `missing` is missing."""
        trainer = place.trainer("reference", options=self.options, start=[0, 0], epochs=self.epochs, once=True)
        reports, away, rows = list(whole_output(trainer)), {missing} - {None}, 0
        for line in reports:
            if line[0] != "batch":
                assert line[0] == "open", f"an undisturbed trainer: {line}"
                continue
            _, epoch, index, _, columns, digests = line
            for row, found, digest in zip(self.rows[epoch, index], split(columns), digests, strict=True):
                rows += 1
                if missing is None:
                    row.digest = digest
                elif missing in row.samples:
                    row.without[missing] = digest
                why = self._row_error(row, found, digest, away)
                assert not why, f"an undisturbed daemon, epoch {epoch}, batch {index}: {why}"
                assert missing not in row.samples or digest != row.digest, f"sample {missing} was away, and was delivered"
        assert rows == sum(map(len, self.rows.values())), f"{rows} rows of an undisturbed daemon"

    def error(self, line: list, away: set[int]) -> tuple[str, int]:
        """What is wrong with a batch that a trainer reported, or "", and how many rows had substitutes for images that were `away` at some time."""
        _, epoch, index, batches, columns, digests = line
        rows = self.rows.get((epoch, index))
        if rows is None or batches != self.batches or len(rows) != len(digests):
            return f"{len(digests)} rows, {batches} batches an epoch: the plan has {len(rows or ())} and {self.batches}", 0
        substituted = 0
        for at, (row, found, digest) in enumerate(zip(rows, split(columns), digests, strict=True)):
            if why := self._row_error(row, found, digest, away):
                return f"row {at}: {why}", substituted
            substituted += digest != row.digest
        return "", substituted

    def _row_error(self, row: Row, found: list[str], digest: str, away: set[int]) -> str:
        if digest == row.digest:
            return "" if found == row.columns else f"columns {found}, not {row.columns}"
        for missing, without in row.without.items():
            if digest == without and missing in away:
                expected = list(row.columns)
                for column, sample in zip((SAMPLE, PARTNER), row.samples, strict=True):
                    if sample == missing:
                        expected[column] = packed("sample_id", self.samples.substitute(sample))
                # The crop follows from the image's size.
                return "" if found[:CROP] == expected[:CROP] else f"columns {found} for {expected}, where sample {missing} was missing"
        return f"columns or pixels: digest {digest}, not {row.digest} of samples {row.samples} (columns {found}, planned {row.columns})"


def whole_output(trainer: Child):
    """The reports of a trainer that ends by itself."""
    lines = []

    def ended() -> bool:
        while new := trainer.lines():
            lines.extend(new)
        return new is None

    wait_for("an undisturbed trainer ends", ended, 120.0)
    code = trainer.process.wait(10.0)
    assert code == 0, f"an undisturbed trainer exited with {code}: {lines[-1:]} {trainer.last_words()}"
    trainer.exit_code()
    return map(json.loads, lines)


def planned(plan: dict, at: int) -> Row:
    """Row `at` of a line of `mixd plan --json --resolve`, which leaves out what no image has."""

    def there(values: dict, key: str) -> object:
        return values[key][at] if values.get(key) else None

    crop = (there(plan, "recipe") or {}).get("crop")
    top, bottom, left, right = there(plan, "box") or [0] * 4
    cut = [top, left, bottom - top, right - left]
    values = {"lam": plan["lambda"][at], "flip": there(plan, "flip") or 0, "cut": cut, "crop": crop or [0] * 4}
    columns = [packed(name, values[name] if name in values else plan[name][at]) for name in COLUMNS]
    return Row((plan["sample_id"][at], plan["partner_id"][at]), columns)


def packed(name: str, value: object) -> str:
    """A column's value of one row, in hexadecimal."""
    return struct.pack("<" + FORMATS[name], *(value if isinstance(value, list) else [value])).hex()


def split(columns: list[str]) -> list[list[str]]:
    """The columns of each row, of all rows' columns."""
    sizes = [2 * struct.calcsize("<" + FORMATS[name]) for name in COLUMNS]
    count = len(columns[0]) // sizes[0]
    return [[column[at * size : (at + 1) * size] for column, size in zip(columns, sizes, strict=True)] for at in range(count)]
