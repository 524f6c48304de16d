"""A feed: an endless sequence of batches, epoch after epoch, that this process reads."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ._native import Array, Batch, Spec, attach, forget
from ._native import Feed as Reader
from .errors import DaemonGoneError, NoRoomError, SpecError

__all__ = ["Array", "Batch", "Epoch", "Feed", "Place"]

# What the order of the batches does not depend on: where and how a trainer reads them. One rank's state serves all ranks.
_FREE_KEYS = {"start", "slots", "share", "digest", "rank", "dtype", "layout", "mean", "std", "smoothing", "device"}


# A child has no lease on its parent's batches, which would change under its hands.
os.register_at_fork(after_in_child=forget)


class Place(NamedTuple):
    """Where a batch stands: its epoch, and its number in the epoch, both from 0."""

    epoch: int
    batch: int


class Feed:
    """Batches of one split, made by a daemon as this feed's spec says; `Server.feed` opens one.

    Each `for batch in feed` is an epoch, also after a `break`; of a feed that was just resumed, the rest of one. `feed.epoch(n)` gives epoch `n`.

    A batch is leased while it, its `x`, or a tensor or array over `x` is there. One that is held while as many others come as the feed has slots
    becomes a copy, at the very same address, and a warning says once what holds it. In a child that was forked the feed is refused: open one
    there.
    """

    def __init__(self, socket: str | os.PathLike[str], spec: Spec, reconnect: float) -> None:
        self._socket, self._spec, self._reconnect = socket, spec, reconnect
        self._ahead: Batch | None = None
        self._reader: Reader | None = attach(os.fspath(socket), spec, None, reconnect)
        self._identity = self._reader.identity
        # Whether somebody has taken batches since the feed was put where it stands.
        self._left_half_way = False
        # How many epochs were begun: an iterator over an earlier one must not take the batches of a later one.
        self._begun = 0
        self.spec: dict[str, Any] = json.loads(spec.json())
        """The spec with all its keys."""
        self.steps: tuple[Callable[[Any], Any], ...] = ()
        """Steps of its recipe on the trainer's side (`mixd.Recipe.then`)."""
        # Opens another feed with the same options, except those given.
        self._reopen: Callable[..., Feed]

    @property
    def _open(self) -> Reader:
        if self._reader is None:
            raise RuntimeError("the feed was closed (open another: server.feed(...))")
        return self._reader

    @property
    def classes(self) -> list[str]:
        """Readable names of the classes, in the order of their labels."""
        return [name for _, name in self._open.classes]

    @property
    def class_ids(self) -> list[str]:
        """Names of the classes' folders, in the order of their labels."""
        return [folder for folder, _ in self._open.classes]

    @property
    def samples(self) -> int:
        """How many images the split has."""
        return self._open.samples

    @property
    def batch_size(self) -> int:
        """Rows of a batch; the last of an epoch may have fewer."""
        return int(self.spec["batch_size"])

    @property
    def is_mixed(self) -> bool:
        """Whether its images are mixed."""
        mix = self.spec["mix"]
        return bool(mix["mixup"] != "none" or mix["cutmix"] != "none")

    @property
    def place(self) -> Place:
        """Where the next batch stands."""
        return Place(*self._open.place) if self._ahead is None else Place(self._ahead.epoch, self._ahead.index)

    @property
    def daemon_pid(self) -> int:
        """The daemon's process id."""
        return self._open.daemon_pid

    def __len__(self) -> int:
        """Batches in each epoch."""
        return self._open.batches

    def next_batch(self) -> Batch:
        """Waits for the next batch of the endless sequence, across the ends of epochs.

        Raises `DaemonGoneError`, `EvictedError` or `FeedEndedError` after everything published was read.
        """
        batch, self._ahead, self._left_half_way = self._ahead, None, True
        return self._open.next_batch() if batch is None else batch

    def epoch(self, number: int | None = None) -> "Epoch":
        """Gives the batches of epoch `number`; by default, of the one that the next batch is of.

        If the feed stands in that epoch, these are the batches that are left of it; else the feed goes to its beginning, forwards or back.
        """
        if number is not None and number != self.place.epoch:
            self.seek(number)
        return Epoch(self, self.place)

    def __iter__(self) -> "Epoch":
        """Gives a whole epoch, unless the feed was just opened, moved or resumed in the middle of one: then the rest of that."""
        if self._left_half_way and self.place.batch:
            self.seek(self.place.epoch + 1)
        return self.epoch()

    def seek(self, epoch: int, index: int = 0) -> None:
        """Goes to a batch of any epoch, forwards or back; nothing of what lies between is decoded. A shared feed is joined at that place.

        Where that fails the feed stays where it is; only a private one for which there is no memory twice may be closed then.
        """
        if epoch < 0 or not 0 <= index < len(self):
            raise SpecError(f"no batch {index} of epoch {epoch}: epochs count from 0, batches from 0 to {len(self) - 1}")
        before, place = self._open, (epoch, index)
        try:
            reader = attach(os.fspath(self._socket), self._spec, place, self._reconnect)
        except NoRoomError:
            # A private feed's own ring and samples make room.
            if self.spec["share"]:
                raise
            self.close()
            reader = attach(os.fspath(self._socket), self._spec, place, self._reconnect)
        if reader.identity != self._identity:
            reader.close()
            raise DaemonGoneError("the daemon that answers now does not make the same batches (start it as before, or open another feed)")
        self._reader, self._ahead, self._left_half_way = reader, None, False
        before.close()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on with the batch after the last one that was taken, as torchdata's StatefulDataLoader has it."""
        return {"epoch": self.place.epoch, "index": self.place.batch, "identity": self._identity, "spec": self.spec}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the feed stood whose state this is. A state of one rank serves all ranks.

        Raises `SpecError` where this feed's spec has another order of batches, and warns where data set, decoder, resize, mixer or version is
        another, so that they are not the same to the bit.
        """
        spec = {key: value for key, value in state["spec"].items() if key not in _FREE_KEYS}
        differing = [f"{key} ({value}, not {self.spec.get(key)})" for key, value in spec.items() if self.spec.get(key) != value]
        if differing:
            raise SpecError(f"the state is one of a feed with other batches: its {', '.join(differing)} (open the feed with the same)")
        if state["identity"] != self._identity:
            text = (
                "the feed goes on, but not to the bit: data set, decoder, resize, mixer or version is another than when the state was taken"
            )
            warnings.warn(text, stacklevel=2)
        if self.place != (state["epoch"], state["index"]) or self._left_half_way:
            self.seek(state["epoch"], state["index"])

    def held(self) -> list[str]:
        """The batches that this process holds, each with what holds it."""
        return self._open.held()

    def close(self) -> None:
        """Leaves the feed. Batches that are held stay as they are, in copies of their own."""
        reader, self._reader, self._ahead = self._reader, None, None
        if reader:
            reader.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._reader is None:
            return "<mixd.Feed, closed>"
        return f"<mixd.Feed: {self.spec['split']}, {len(self)} batches of {self.batch_size}, next is {tuple(self.place)}>"


class Epoch(Iterator[Batch]):
    """The batches of an epoch, from `start` on. It keeps none of them: each is held by whoever took it."""

    def __init__(self, feed: Feed, start: Place) -> None:
        self._feed, self.start, self._over = feed, start, False
        feed._begun += 1
        self._nth = feed._begun

    def __len__(self) -> int:
        """How many there were when it began."""
        return len(self._feed) - self.start.batch

    def __next__(self) -> Batch:
        if not self._over and self._nth != self._feed._begun:
            raise RuntimeError(
                "another iterator over this feed was begun after this one, and has its place (open a feed for each: server.feed(...); a "
                "mixd.torch.DataLoader may be iterated over twice at once)"
            )
        if not self._over and self._feed.place.epoch == self.start.epoch:
            batch = self._feed.next_batch()
            if batch.epoch == self.start.epoch:
                return batch
            # The end of the epoch was skipped (delivery latest).
            self._feed._ahead = batch
        self._over = True
        raise StopIteration
