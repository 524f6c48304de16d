"""Loaders that take the place of torch's: a feed as a `torch.utils.data.DataLoader`, and one for a DataLoader that is there already."""

import atexit
import dis
import os
import shutil
import tempfile
import threading
from collections import UserList
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import data
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from ._native import Batch
from .errors import SpecError
from .feed import Feed, Place
from .losses import Device, Targets
from .pictures import caption, draw, to_pixels
from .server import Server, serve
from .transforms import key_of, read

__all__ = ["DataLoader", "replace_loader"]

# What cross-entropy leaves out.
IGNORED_LABEL = -100


class _Images(data.Dataset[Any]):
    """A feed as a dataset: `len`, `classes` and `class_to_idx`, and what the dataset has whose place it takes; indexed by a `Place`, a batch."""

    def __init__(self, feed: Feed, instead_of: Any, make: Callable[[Batch], Any], batches: "Callable[[int | None], int]") -> None:
        self._feed, self._instead_of, self._make, self._batches = feed, instead_of, make, batches
        # One that skips batches has no place of its own to return to.
        share = feed.spec["share"]
        self._skips = bool(share) and share["delivery"] == "latest"
        # A child's copy may be held for good.
        self._lock, self._pid = threading.RLock(), os.getpid()

    @property
    def turn(self) -> threading.RLock:
        """Held while the feed goes to a batch and takes it, by one of the threads that iterate."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        return list(self._instead_of.classes) if self._instead_of is not None else self._feed.classes

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The label of each class."""
        return {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return self._feed.samples

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, Place):
            if self._instead_of is None:
                raise TypeError("a feed has batches, not single images (iterate over the loader)")
            return self._instead_of[at]
        if self._feed.place != at and not self._skips:
            self._feed.seek(*at)
        return self._make(self._feed.next_batch())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self._instead_of is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._instead_of, name)


class _Sampler(data.DistributedSampler[Any]):
    """What deals a feed's samples to ranks, to be told the epoch and asked for its length. The daemon deals them."""

    def __init__(self, feed: Feed, images: _Images) -> None:
        spec = feed.spec
        last = spec["last"] == "drop"
        super().__init__(images, spec["world_size"], spec["rank"], shuffle=bool(spec["shuffle"]), seed=spec["seed"], drop_last=last)
        self._feed = feed
        # The sampler whose place this one takes, and its epoch when last seen.
        self._instead_of: Any = None
        self._seen = 0

    def set_epoch(self, epoch: int) -> None:
        """Makes this epoch the next one."""
        self.epoch = epoch
        # One that was resumed in the middle of this epoch stays there.
        if self._feed.place.epoch != epoch or (self._feed._left_half_way and self._feed.place.batch):
            self._feed.seek(epoch)

    def follow(self) -> None:
        """Goes to the epoch of the replaced sampler if a script has set it there."""
        epoch = getattr(self._instead_of, "epoch", 0)
        if epoch != self._seen:
            self._seen = epoch
            self.set_epoch(epoch)

    def __len__(self) -> int:
        """Rows of this rank in an epoch."""
        spec, samples = self._feed.spec, self._feed.samples
        if spec["repeats"] > 1:
            samples = samples // 256 * 256 if samples >= 256 else samples
        dealt = samples // spec["world_size"] if spec["repeats"] > 1 or spec["last"] == "drop" else -(-samples // spec["world_size"])
        return int(dealt * spec["views"])

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("the daemon deals the samples (batch.sample_id says which are in a batch of the feed)")


class _BatchSampler(data.Sampler[list[Place]]):
    """The places of a feed's batches, an epoch at a time; with a SequentialSampler, as Lightning has it to overfit, of the same epoch each time."""

    def __init__(self, sampler: "_Sampler | data.SequentialSampler", batch_size: int, drop_last: bool) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        images: Any = sampler.dataset if isinstance(sampler, _Sampler) else sampler.data_source
        self._feed, self._batches = images._feed, images._batches
        self.is_fixed = not isinstance(sampler, _Sampler)

    def set_epoch(self, epoch: int) -> None:
        """Makes this epoch the next one."""
        if isinstance(self.sampler, _Sampler):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Place]]:
        if isinstance(self.sampler, _Sampler):
            self.sampler.follow()
        start = Place(0, 0) if self.is_fixed else iter(self._feed).start
        if start.batch >= self._batches(start.epoch):
            # Resumed behind the last batch that is not dropped.
            start = Place(start.epoch + 1, 0)
        return ([Place(start.epoch, index)] for index in range(start.batch, self._batches(start.epoch)))

    def __len__(self) -> int:
        return int(self._batches(None))


class _Iterator(_SingleProcessDataLoaderIter):
    """Iterates over a loader; threads may share one."""

    _dataset: _Images

    def _next_data(self) -> Any:
        with self._dataset.turn:
            return super()._next_data()  # type: ignore[no-untyped-call]


class _Vocab(UserList[str]):
    """Names of classes in the shape of fastai's, which takes a plain list for one vocabulary per target."""

    @property
    def o2i(self) -> dict[str, int]:
        """The label of each class."""
        return {name: label for label, name in enumerate(self)}


def _alone(batches: Sequence[Any]) -> Any:
    """The one batch of a batch of batches."""
    (batch,) = batches
    return batch


class DataLoader(data.DataLoader[Any]):
    """A feed as a `torch.utils.data.DataLoader`: each `for x, y in loader` is an epoch.

    `x` lies in shared memory, or on `device`. `y` is, by `targets`: "soft", probabilities `[B, classes]` with the feed's smoothing (for
    `nn.CrossEntropyLoss`); "label", int64 `[B]`; "object", a `Targets` (for `MixedLoss`). By default, soft where the feed is mixed, labels
    where it is not. Where images have several labels, "soft" is multi-hot rows of 0 and 1, mixed, and "label" those of the own image, both float32
    `[B, classes]` (for `nn.BCEWithLogitsLoss`).

    The steps of the feed's recipe (`mixd.Recipe.then`) are applied to `x`. Two iterators at once have places of their own, at the price of joining
    the feed anew for each batch. Threads may share a loader, or an iterator: each of its batches goes to one of them.
    """

    # Typed for those who use them: torch's types know neither what a dataset has beside its samples nor set_epoch.
    dataset: Any
    sampler: Any
    batch_sampler: Any

    # Accelerate builds a loader of its own around others, and deals its batches to ranks once more.
    _is_accelerate_prepared = True

    def __init__(
        self,
        feed: Feed,
        targets: Literal["soft", "label", "object"] | None = None,
        device: Device = "cpu",
        *,
        padded: Literal["keep", "drop", "mask"] = "keep",
        keys: tuple[str, str] | None = None,
        dataset: Any = None,
        **given: Any,
    ) -> None:
        """Reads `feed`.

        padded: what becomes of rows that repeat others where samples do not come out even over ranks: "keep" them; "drop" them, and batches of
            nothing else; or "mask" them, with the label -100, which cross-entropy ignores (labels only).
        keys: names under which batches have `x` and `y` as dicts, such as ("pixel_values", "labels").
        dataset: whose place this loader takes: what `loader.dataset` has beside its length.
        """
        # Lightning makes a loader anew to change its samplers, with all options of torch's.
        given_sampler = given.get("batch_sampler")
        # To predict, Lightning wraps one.
        again = getattr(given_sampler, "_batch_sampler", given_sampler)
        if given and not isinstance(again, _BatchSampler):
            name = next(iter(given))
            raise SpecError(
                f"{name} is no option of a loader over a feed (the feed's options say what is in a batch: help(mixd.Server.feed))"
            )
        if isinstance(dataset, _Images):
            dataset = dataset._instead_of
        if targets not in (None, "object", "soft", "label"):
            raise SpecError(f"targets is {targets!r}: it must be object, soft or label")
        if padded not in ("keep", "drop", "mask"):
            raise SpecError(f"padded is {padded!r}: it must be keep, drop or mask")
        self.targets = targets or ("soft" if feed.is_mixed else "label")
        if feed.label_sets is not None and (feed.spec["smoothing"] or padded == "mask"):
            what = 'padded "mask"' if padded == "mask" else f"smoothing {feed.spec['smoothing']}"
            raise SpecError(f"{what} is for one label an image, and these images have several (leave it out)")
        if padded == "mask" and self.targets != "label":
            raise SpecError(f'padded is "mask" with targets {self.targets}: only labels are masked (padded="drop", or targets="label")')
        self.feed, self.device, self.padded, self.keys, self.classes = feed, device, padded, keys, feed.classes
        # Loaders that `new` gave, by what is other about them.
        self._others: dict[tuple[tuple[str, Any], ...], DataLoader] = {}
        images = _Images(feed, dataset, self._made, self._batches)
        sampler = _Sampler(feed, images)
        super().__init__(images, feed.batch_size, sampler=sampler, drop_last=sampler.drop_last, collate_fn=_alone)
        # Past torch's own, which would make batches of the samples.
        batches = data.SequentialSampler(images) if again and again.is_fixed else sampler
        own = _BatchSampler(batches, feed.batch_size, sampler.drop_last)
        if given_sampler is None or given_sampler is again:
            self.__dict__["batch_sampler"] = own
        else:
            given_sampler._batch_sampler = own
            self.__dict__["batch_sampler"] = given_sampler

    def _get_iterator(self) -> _Iterator:
        with self.dataset.turn:
            return _Iterator(self)

    def _batches(self, epoch: int | None) -> int:
        """Behind which batch a loop over an epoch ends; `None` stands for one that is dealt as a whole."""
        spec = self.feed.spec
        if self.padded != "drop" or spec["last"] == "drop" or spec["repeats"] > 1:
            return len(self.feed)
        consumed = spec.get("consumed") or {"epoch": -1}
        left = self.feed.samples - (consumed["samples"] if consumed["epoch"] == epoch else 0)
        # The first rank's batches hold no padding.
        first, own = (-(-(-(-(left - rank) // spec["world_size"]) * spec["views"]) // self.feed.batch_size) for rank in (0, spec["rank"]))
        return int(len(self.feed) - first + own)

    def __len__(self) -> int:
        """Batches in each epoch."""
        return self._batches(None)

    def _made(self, batch: Batch) -> Any:
        rows = len(batch) - batch.pad if self.padded == "drop" else len(batch)
        there = {"device": self.device, "non_blocking": True}
        x, label_a = batch.x.to(**there)[:rows], batch.label_a.to(**there)[:rows]
        for step in self.feed.steps:
            x = step(x)
        y: Any = label_a
        sets = batch.label_sets
        if self.targets == "label" and sets is not None:
            y = Targets(label_a, label_a, torch.ones(rows, device=label_a.device), sets).soft(len(self.classes))
        elif self.targets != "label":
            y = Targets(label_a, batch.label_b.to(**there)[:rows], batch.lam.to(**there)[:rows], sets)
            if self.targets == "soft":
                y = y.soft(len(self.classes), self.feed.spec["smoothing"])
        elif self.padded == "mask" and batch.pad:
            y = label_a.clone()
            y[rows - batch.pad :] = IGNORED_LABEL
        return (x, y) if self.keys is None else dict(zip(self.keys, (x, y), strict=True))

    def new(self, *, shuffle: bool | None = None, drop_last: bool | None = None) -> "DataLoader":
        """Returns this loader if the feed shuffles and drops like that, else one over another feed of the same options. fastai calls it."""
        last = None if drop_last is None else "drop" if drop_last else "keep"
        ours = {"shuffle": bool(self.feed.spec["shuffle"]), "last": self.feed.spec["last"]}
        changed = {name: value for name, value in (("shuffle", shuffle), ("last", last)) if value not in (None, ours[name])}
        if not changed:
            return self
        key = tuple(changed.items())
        if key not in self._others:
            feed = self.feed._reopen(**changed, share=None, delivery=None, max_lag=None, start="now")
            self._others[key] = DataLoader(feed, self.targets, self.device, padded=self.padded, keys=self.keys, dataset=self.dataset)
        return self._others[key]

    def to(self, device: Device) -> "DataLoader":
        """Delivers batches on `device` from now on."""
        self.device = device
        return self

    @property
    def vocab(self) -> "_Vocab":
        """Names of the classes, as fastai reads them."""
        return _Vocab(self.classes)

    def one_batch(self) -> Any:
        """Returns the batch that the next loop begins with; the loop still begins with it, unless the feed is shared."""
        self.sampler.follow()
        feed, place, half_way = self.feed, self.feed.place, self.feed._left_half_way
        batch = next(iter(self))
        if not feed.spec["share"]:
            feed.seek(*place)
            feed._left_half_way = half_way
        return batch

    def show_batch(self, b: Any = None, max_n: int = 9, **layout: Any) -> None:
        """Draws images of batch `b`, by default of the next one, under their classes (`layout`: nrows, ncols, figsize). Needs matplotlib."""
        self._show(self.one_batch() if b is None else b, None, max_n, layout)

    def show_results(self, b: Any, out: Tensor, max_n: int = 9, **layout: Any) -> None:
        """Draws images of batch `b` under their classes and those predicted; `out` is of labels, or of logits."""
        self._show(b, out.argmax(1) if out.ndim == 2 else out, max_n, layout)

    def _show(self, b: Any, out: Tensor | None, max_n: int, layout: dict[str, Any]) -> None:
        x, y = b if self.keys is None else (b[key] for key in self.keys)
        spec = self.feed.spec
        smoothing = spec["smoothing"] if self.targets == "soft" else 0.0
        y = y.soft(len(self.classes)) if isinstance(y, Targets) else y
        captions = [caption(row, self.classes, smoothing) for row in y[:max_n].tolist()]
        predicted = None if out is None else [self.classes[label] for label in out[:max_n].tolist()]
        draw(to_pixels(x[:max_n], spec["mean"], spec["std"], spec["layout"]), captions, predicted, **layout)

    def state_dict(self) -> dict[str, Any]:
        """The feed's."""
        return self.feed.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The feed's."""
        self.feed.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Makes this epoch the next one, as a DistributedSampler has it."""
        self.sampler.set_epoch(epoch)


def replace_loader(
    loader: "data.DataLoader[Any]",
    *,
    server: Server | None = None,
    device: Device = "cpu",
    padded: Literal["keep", "drop", "mask"] = "keep",
    keys: tuple[str, str] | None = None,
    **options: Any,
) -> DataLoader:
    """Gives a loader of the batches that `loader` makes: same distribution, length and labels, made by a daemon.

    loader: a DataLoader over a torchvision `ImageFolder`, or a `Subset` of one, whose transform `from_torchvision` takes, in any order that
        RandomSampler, SequentialSampler, DistributedSampler and RASampler have, with torch's collate function, or torchvision's MixUp, CutMix (or its
        references' RandomMixUp, RandomCutMix) or a RandomChoice of both, or timm's Mixup. What else it may be is refused with `SpecError`, which names it.
    server: the daemon; by default one of this process's own, for each folder.
    padded, keys: as of `DataLoader`.
    options: of `Server.feed`, which take precedence, such as `dtype="bf16"`, `seed=1`, or `slots=8`.

    The order of samples is the feed's, not torch's: both are uniform. `set_epoch` of `loader`'s own sampler moves the new loader, too.
    """
    images, indices = _image_folder(loader.dataset)
    sampled, mixed = _sampled(loader), _mixed(loader.collate_fn, len(images.classes))
    chain = read(images.transform)
    recipe, is_random = chain.recipe(None, "custom"), chain.random is not None
    if chain.values == "pil":
        raise _refuse("a transform that leaves PIL images", "batches are tensors", "put ToTensor() at its end")
    view = recipe.train if is_random else recipe.val
    spec: dict[str, Any] = {
        "batch_size": loader.batch_size, "last": "drop" if loader.drop_last else "keep", "size": view.size, "crop": view.crop,
        "interpolation": view.interpolation, "dtype": "u8" if chain.values == "bytes" else "f32", "mean": recipe.mean, "std": recipe.std,
        "recipe": "lesson", "fold": False, "mixup": None, "cutmix": None,
    }  # fmt: skip
    if is_random:
        train, augment = recipe.train, recipe.train.augment
        spec |= {
            "flip": train.flip, "policy": augment.policy, "color_jitter": augment.jitter, "grayscale": augment.grayscale, "blur": augment.blur,
            "solarize": augment.solarize, "warp": augment.warping.filter, "fill": augment.warping.fill, "erase": train.erase,
        }  # fmt: skip
    spec |= sampled | mixed | options
    folder, split = _folder_of(images, indices, bool(spec["shuffle"]))
    own = server or serve(data=folder)
    if own.class_ids != list(images.classes):
        why = f"the daemon's classes are {own.class_ids}, which gives other labels"
        raise _refuse("these classes", why, "have images of each class, in the order of the folders' names")
    feed = own.feed(split, **spec)
    count = len(images) if indices is None else len(indices)
    if feed.samples != count:
        raise _refuse(
            f"a dataset of {count} images", f"the daemon finds {feed.samples} in the folder", "have mixd.serve read the folder itself"
        )
    made = DataLoader(feed, "soft" if feed.is_mixed else "label", device, padded=padded, keys=keys, dataset=loader.dataset)
    made.sampler._instead_of = loader.sampler
    if not options and padded != "drop" and len(made) != len(loader):
        raise _refuse(
            f"{len(loader)} batches an epoch", f"the feed has {len(made)}", "say drop_last both of loader and sampler, or of neither"
        )
    return made


def _refuse(what: str, why: str, remedy: str) -> SpecError:
    return SpecError(f"replace_loader cannot take {what}: {why} ({remedy})")


def _image_folder(dataset: Any) -> tuple[Any, list[int] | None]:
    """The ImageFolder behind a dataset, and the part of it."""
    indices: list[int] | None = None
    while isinstance(dataset, data.Subset):
        chosen = [int(at) for at in dataset.indices]
        indices = chosen if indices is None else [chosen[at] for at in indices]
        dataset = dataset.dataset
    name = type(dataset).__name__
    if not all(hasattr(dataset, key) for key in ("samples", "classes", "class_to_idx", "transform", "root")):
        raise _refuse(
            f"a dataset of type {name}", "it is no ImageFolder", "mixd.serve(data=folder) and server.feed(...) take folders and archives"
        )
    if type(dataset).__getitem__.__module__ != "torchvision.datasets.folder" or key_of(dataset).partition(".")[0] != "torchvision":
        raise _refuse(f"a dataset of type {name}", "it may do anything with its samples", "use torchvision's ImageFolder itself")
    begin = len(os.path.join(dataset.root, ""))
    if any(dataset.class_to_idx.get(path[begin:].split(os.sep, 1)[0]) != label for path, label in dataset.samples):
        raise _refuse("labels of its own", "labels are the numbers of the folders", "leave samples as ImageFolder lists them")
    if dataset.target_transform is not None:
        raise _refuse("a target_transform", "labels are the numbers of the classes", "apply it to y in the loop")
    if getattr(dataset.loader, "__name__", "") != "default_loader":
        raise _refuse(f"the loader {dataset.loader!r}", "mixd decodes images itself", "leave it out")
    return dataset, indices


def _sampled(loader: "data.DataLoader[Any]") -> dict[str, Any]:
    """What a loader's samplers say."""
    sampler: Any = loader.sampler
    if loader.batch_size is None or type(loader.batch_sampler) is not data.BatchSampler:
        raise _refuse(
            f"the batch sampler {type(loader.batch_sampler).__name__}", "batches are whole parts of an epoch's order", "use batch_size="
        )
    seed = {"seed": torch.initial_seed() % 2**63}
    # Without a sampler that deals, each process has the whole.
    whole = {"rank": 0, "world_size": 1}
    if len(sampler) > len(loader.dataset) and isinstance(sampler, data.SequentialSampler):  # type: ignore[arg-type]
        raise _refuse("a SequentialSampler over something else", "an epoch has each sample once", "leave it out")
    if isinstance(sampler, data.SequentialSampler):
        return {"shuffle": False} | whole
    if isinstance(sampler, data.RandomSampler):
        if sampler.replacement or sampler.num_samples != len(sampler.data_source):
            raise _refuse("a RandomSampler with replacement or num_samples", "each sample comes once an epoch", "leave them out")
        return {"shuffle": True} | seed | whole
    if all(hasattr(sampler, key) for key in ("num_replicas", "rank", "shuffle")):
        ranks = {"rank": sampler.rank, "world_size": sampler.num_replicas, "shuffle": sampler.shuffle, "seed": getattr(sampler, "seed", 0)}
        if type(sampler) is data.DistributedSampler:
            return ranks | {"last": "drop" if loader.drop_last or sampler.drop_last else "keep"}
        repeats = getattr(sampler, "num_repeats", getattr(sampler, "repetitions", None))
        is_usual = (getattr(sampler, "selected_round", 256), getattr(sampler, "selected_ratio", 0)) in (
            (256, 0),
            (256, sampler.num_replicas),
        )
        if repeats is not None and repeats == int(repeats) and is_usual:
            return ranks | {"repeats": int(repeats)}
    raise _refuse(
        f"the sampler {type(sampler).__name__}",
        "an epoch has each sample once, shuffled or in order, or repeats times in a row",
        "use RandomSampler, SequentialSampler, DistributedSampler or RASampler",
    )


# Functions of the shape that a collate function has around a mix.
def _shape_of(mix: Any, default_collate: Any) -> Any:
    return lambda rows: mix(*default_collate(rows))


def _mixer_of(collate: Any) -> Any:
    """The object that mixes: the collate function itself, or the one of a function `mix(*default_collate(rows))` and nothing more."""
    code = getattr(collate, "__code__", None)
    if code is None:
        return collate
    cells = dict(zip(code.co_freevars, collate.__closure__ or (), strict=True))
    named = [cells[name].cell_contents for name in code.co_freevars]
    named += [collate.__globals__.get(name, getattr(data, name, None)) for name in code.co_names]
    # Modules, and names of attributes on the way to default_collate, are no mixers.
    passed = (None, data.default_collate)
    mixers = [value for value in named if not any(value is other for other in passed) and not isinstance(value, type(torch))]
    # One call of each, and no branch, no arithmetic and no other variable.
    calls = [step.opname for step in dis.get_instructions(code) if step.opname.startswith(("CALL", "STORE", "POP_JUMP", "BINARY", "FOR"))]
    usual = [step.opname for step in dis.get_instructions(_shape_of(None, None).__code__) if step.opname.startswith(("CALL", "STORE"))]
    is_plain = calls == usual and data.default_collate in named and code.co_argcount == code.co_nlocals == 1
    return mixers[0] if len(mixers) == 1 and is_plain else None


# torchvision's mixes, and those of its references for v1, whose module is `transforms`.
_MIXES = {
    "torchvision.MixUp": "MixUp",
    "torchvision.CutMix": "CutMix",
    "transforms.RandomMixUp": "MixUp",
    "transforms.RandomCutMix": "CutMix",
}


def _mixed(collate: Any, classes: int) -> dict[str, Any]:
    """What a collate function mixes."""
    if collate is data.default_collate:
        return {}
    mix = _mixer_of(collate)
    if key_of(mix) == "timm.Mixup":
        return _timm_mixed(mix, classes)
    chosen = list(mix.transforms) if key_of(mix) == "torchvision.RandomChoice" else [mix]
    kinds = {_MIXES.get(key_of(one)): one for one in chosen}
    probs = {float(getattr(one, "p", 1.0)) for one in chosen}
    if len(kinds) != len(chosen) or None in kinds or len(probs) > 1:
        raise _refuse(
            f"the collate function {getattr(collate, '__name__', collate)!r}",
            "it is neither default_collate, nor torchvision's MixUp, CutMix or a RandomChoice of them after it, nor timm's Mixup",
            "leave it out, and say mixup= and cutmix= here",
        )
    for one in chosen:
        _same_classes(one, one.num_classes, classes)
    alphas = {name: float(one.alpha) for name, one in kinds.items()}
    weights = dict(zip(kinds, getattr(mix, "p", None) or [1.0] * len(chosen), strict=True))
    switch = weights.get("CutMix", 0.0) / sum(weights.values())
    names = {"mixup": alphas.get("MixUp"), "cutmix": alphas.get("CutMix"), "mix_prob": probs.pop()}
    return names | {"mix_switch": switch, "lam": "per-batch", "pairing": "roll"}


def _same_classes(mix: Any, found: int | None, classes: int) -> None:
    if found not in (None, classes):
        raise _refuse(f"{mix!r}", f"its num_classes is {found}, and the dataset has {classes} classes", f"use num_classes={classes}")


def _timm_mixed(mix: Any, classes: int) -> dict[str, Any]:
    """What timm's Mixup does."""
    if mix.cutmix_minmax is not None or not mix.correct_lam or not mix.mixup_enabled or getattr(mix, "multi_label", False):
        why = "boxes are drawn by Beta(α, α), λ is the share outside them, and it is on"
        raise _refuse("timm's Mixup with such options", why, "leave cutmix_minmax, correct_lam, mixup_enabled and multi_label out")
    _same_classes(mix, mix.num_classes, classes)
    per = {"batch": "per-batch", "pair": "per-pair", "elem": "per-image"}[mix.mode]
    return {
        "mixup": mix.mixup_alpha or None, "cutmix": mix.cutmix_alpha or None, "mix_prob": mix.mix_prob, "mix_switch": mix.switch_prob, "lam": per,
        "pairing": "reverse", "smoothing": mix.label_smoothing,
    }  # fmt: skip


def _folder_of(images: Any, indices: list[int] | None, shuffle: bool) -> tuple[Path, Literal["train", "val"]]:
    """A data set for the daemon that has just these images, and which half of it they are."""
    root = Path(images.root).resolve()
    if indices is None and root.name in ("train", "val") and all((root.parent / split).is_dir() for split in ("train", "val")):
        return root.parent, "train" if root.name == "train" else "val"
    if indices is not None and len(set(indices)) != len(indices):
        raise _refuse("a Subset with an image twice", "an epoch has each image once", "use repeats=, or leave one out")
    if indices is not None and not shuffle and indices != sorted(indices):
        raise _refuse("a Subset in an order of its own", "images that are not shuffled come in the order of the folder", "sort its indices")
    links = Path(tempfile.mkdtemp(prefix="mixd-"))
    maker = os.getpid()

    # Not by a child that was forked.
    def remove() -> None:
        if os.getpid() == maker:
            shutil.rmtree(links, ignore_errors=True)

    atexit.register(remove)
    # mixd takes links to files, in the order of their names.
    width = len(str(len(images)))
    for name in images.classes:
        (links / "train" / name).mkdir(parents=True)
    for at in range(len(images)) if indices is None else indices:
        path, label = images.samples[at]
        (links / "train" / images.classes[label] / f"{at:0{width}}{Path(path).suffix}").symlink_to(os.path.abspath(path))
    return links, "train"
