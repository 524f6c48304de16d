"""A feed: an endless sequence of batches, epoch after epoch, that this process reads."""

import json
import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

from ._native import Array, Batch, Spec, attach, forget
from ._native import Feed as Reader
from .errors import DaemonGoneError, MixdError, NoRoomError, SpecError
from .rendezvous import Part

__all__ = ["Array", "Batch", "Epoch", "Feed", "Place"]

T = TypeVar("T")

# What the order of an epoch's samples does not depend on: where and how trainers read them, and how many. One rank's state serves all ranks.
_FREE_KEYS = {
    "start", "slots", "share", "digest", "rank", "world_size", "consumed", "dtype", "layout", "mean", "std", "smoothing", "device",
}  # fmt: skip


# Bound of the epoch in which a feed begins (src/types.rs, START_EPOCH_BITS).
_EPOCHS_MAX = 2**55
# Bound of batches an epoch (src/types.rs, BATCH_BITS).
_BATCHES_MAX = 2**24

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
    there. Threads may share a feed, and an epoch of it: each batch goes to one of them.
    """

    def __init__(self, socket: str | os.PathLike[str], spec: Spec, reconnect: float, part: Part | None = None) -> None:
        self._socket, self._spec, self._reconnect, self._part = socket, spec, reconnect, part
        # Held between waits only, while what follows is looked at and changed; a child's copy may be held for good.
        self._lock, self._pid = threading.RLock(), os.getpid()
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
    def label_sets(self) -> tuple[tuple[int, ...], ...] | None:
        """Where images have several labels: the sets of classes that `label_a` and `label_b` number; else None, and these are classes."""
        return self._open.label_sets

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
        return Place(*self._open.place)

    @property
    def daemon_pid(self) -> int:
        """The daemon's process id."""
        return self._open.daemon_pid

    def __len__(self) -> int:
        """Batches in each epoch."""
        return self._open.batches

    @property
    def _guard(self) -> threading.RLock:
        """The lock, this process's own."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock

    def _take(self, iterator: "Epoch | None") -> Batch | None:
        """Waits for the next batch, of the iterator's epoch where there is one; None where that is over."""
        while True:
            with self._guard:
                if iterator and iterator._nth != self._begun:
                    raise RuntimeError(
                        "another iterator over this feed was begun after this one, and has its place (open a feed for each: server.feed(...); "
                        "a mixd.torch.DataLoader may be iterated over twice at once)"
                    )
                reader = self._open
            try:
                batch = reader.next_batch(iterator.start.epoch if iterator else None)
            except DaemonGoneError as error:
                self._explain(error)
                raise
            except RuntimeError:
                # Another thread has moved the feed meanwhile, and closed this reader.
                if self._reader in (reader, None):
                    raise
                continue
            # Only now: the place has not changed where the wait was interrupted.
            with self._guard:
                self._left_half_way |= self._reader is reader
            return batch

    def _explain(self, error: MixdError) -> None:
        """Adds to an error how the daemon ended, where that is known."""
        if self._part:
            self._part.explain(error)

    def next_batch(self) -> Batch:
        """Waits for the next batch of the endless sequence, across the ends of epochs.

        Raises `DaemonGoneError`, `EvictedError` or `FeedEndedError` after everything published was read.
        """
        batch = self._take(None)
        assert batch, "the sequence is endless"
        return batch

    def epoch(self, number: int | None = None) -> "Epoch":
        """Gives the batches of epoch `number`; by default, of the one that the next batch is of.

        If the feed stands in that epoch, these are the batches that are left of it; else the feed goes to its beginning, forwards or back.
        """
        with self._guard:
            place = self.place
            if number is None or number == place.epoch:
                return Epoch(self, place)
        return self._move(number, 0, lambda: Epoch(self, self.place))

    def __iter__(self) -> "Epoch":
        """Gives a whole epoch, unless the feed was just opened, moved or resumed in the middle of one: then the rest of that."""
        with self._guard:
            place = self.place
            if not (self._left_half_way and place.batch):
                return Epoch(self, place)
        return self._move(place.epoch + 1, 0, lambda: Epoch(self, self.place))

    def seek(self, epoch: int, index: int = 0) -> None:
        """Goes to a batch of any epoch, forwards or back; nothing of what lies between is decoded. A shared feed is joined at that place.

        Where that fails the feed stays where it is; only a private one for which there is no memory twice may be closed then. Raises
        `RuntimeError` where another thread closes or moves it meanwhile.
        """
        self._move(epoch, index, lambda: None)

    def _move(self, epoch: int, index: int, then: Callable[[], T]) -> T:
        """Goes to a batch, and does what is to be done before another thread may go on."""
        place = _place(epoch, index, len(self))
        with self._guard:
            before = self._open
        try:
            try:
                reader = attach(os.fspath(self._socket), self._spec, place, self._reconnect)
            except NoRoomError:
                # A private feed's own ring and samples make room.
                if self.spec["share"]:
                    raise
                before.close()
                try:
                    reader = attach(os.fspath(self._socket), self._spec, place, self._reconnect)
                except BaseException:
                    self.close()
                    raise
        except MixdError as error:
            self._explain(error)
            raise
        with self._guard:
            is_same, is_ours = reader.identity == self._identity, self._reader is before
            if is_same and is_ours:
                self._reader, self._left_half_way = reader, False
                result = then()
        if is_same and is_ours:
            before.close()
            return result
        reader.close()
        if is_same:
            raise RuntimeError("another thread has closed or moved the feed meanwhile (have one thread do that)")
        raise DaemonGoneError("the daemon that answers now does not make the same batches (start it as before, or open another feed)")

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on with the batch after the last one that was taken, as torchdata's StatefulDataLoader has it."""
        place = self.place
        return {"epoch": place.epoch, "index": place.batch, "identity": self._identity, "spec": self.spec}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the feed stood whose state this is. A state of one rank serves all ranks, which have read as many batches.

        With another world size the samples of the epoch that were not read yet are dealt to the new ranks, as the epoch's last batches; what lies
        before them cannot be asked for again (`seek`). Where too few are left for a batch (`last` drop, repeats), the next epoch comes.

        Raises `SpecError` where this is no such state, where this feed's spec has another order of samples, or where it is shared and the world size
        is another; warns where data set, decoder, resize, mixer or version is another, so that batches are not the same to the bit.
        """
        if (
            not isinstance(state, Mapping)
            or not isinstance(state.get("spec"), Mapping)
            or not {"epoch", "index", "identity"} <= state.keys()
        ):
            raise SpecError(f"a {type(state).__name__} that is no state of a feed (load what feed.state_dict() returned)")
        place = _place(state["epoch"], state["index"], _BATCHES_MAX)
        order = {key: value for key, value in state["spec"].items() if key not in _FREE_KEYS}
        differing = [f"{key} ({value}, not {self.spec.get(key)})" for key, value in order.items() if self.spec.get(key) != value]
        if differing:
            raise SpecError(f"the state is one of a feed with other batches: its {', '.join(differing)} (open the feed with the same)")
        if state["identity"] != self._identity:
            text = (
                "the feed goes on, but not to the bit: data set, decoder, resize, mixer or version is another than when the state was taken"
            )
            warnings.warn(text, stacklevel=2)
        before = self._spec
        spec, place = self._resumed(state["spec"], place)
        is_another = spec.json() != before.json()
        if is_another and self.spec["share"]:
            raise SpecError("a shared feed cannot go on with another world size: others read the old one (open it without share)")
        if is_another or self.place != place or self._left_half_way:
            self._spec = spec
            try:
                self.seek(*place)
            except BaseException:
                self._spec = before
                raise
            self.spec = json.loads(spec.json())

    def _resumed(self, there: Mapping[str, Any], place: Place) -> tuple[Spec, Place]:
        """The spec and the place with which this feed goes on where ranks of another stopped."""
        world_size, consumed = there.get("world_size"), there.get("consumed")
        try:
            pair = (consumed["epoch"], consumed["samples"]) if consumed else None
            spec, resumed = self._spec.resumed(self.samples, operator.index(world_size), pair, place)  # type: ignore[arg-type]
        except (KeyError, TypeError, OverflowError) as error:
            raise SpecError(
                f"the state has world_size {world_size!r} and consumed {consumed!r}, as no feed has them (load another)"
            ) from error
        return spec, Place(*resumed)

    def held(self) -> list[str]:
        """The batches that this process holds, each with what holds it."""
        return self._open.held()

    def close(self) -> None:
        """Leaves the feed. Batches that are held stay as they are, in copies of their own."""
        with self._guard:
            reader, self._reader = self._reader, None
        if reader:
            reader.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a feed belongs to the process that opened it, and is not pickled (open one in the other process)")

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._reader is None:
            return "<mixd.Feed, closed>"
        return f"<mixd.Feed: {self.spec['split']}, {len(self)} batches of {self.batch_size}, next is {tuple(self.place)}>"


def _place(epoch: object, index: object, batches: int) -> Place:
    """A batch of an epoch of so many, checked."""
    try:
        place = Place(operator.index(epoch), operator.index(index))  # type: ignore[arg-type]
    except TypeError:
        place = Place(-1, -1)
    if not 0 <= place.epoch < _EPOCHS_MAX or not 0 <= place.batch < batches:
        raise SpecError(f"no batch {index} of epoch {epoch}: epochs count from 0 to 2**55 - 1, batches from 0 to {batches - 1}")
    return place


class Epoch(Iterator[Batch]):
    """The batches of an epoch, from `start` on. It keeps none of them: each is held by whoever took it. Threads may share it."""

    def __init__(self, feed: Feed, start: Place) -> None:
        self._feed, self.start, self._over = feed, start, False
        feed._begun += 1
        self._nth = feed._begun

    def __len__(self) -> int:
        """How many there were when it began."""
        return len(self._feed) - self.start.batch

    def __next__(self) -> Batch:
        batch = None if self._over else self._feed._take(self)
        if batch is None:
            self._over = True
            raise StopIteration
        return batch

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "the batches of a feed belong to the process that opened it, and are not pickled (open a feed in the other process)"
        )
