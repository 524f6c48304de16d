"""A daemon as its trainers see it: one that runs, or one of their own."""

import contextlib
import functools
import json
import math
import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from ._native import Spec, daemon, default_socket
from .errors import MixdError, NoDaemonError, SpecError
from .feed import Feed
from .job import world
from .recipe import Blur, ColorJitter, Crop, Erase, Recipe, Solarize
from .rendezvous import Part, check_path, part

__all__ = ["Server", "connect", "serve"]

_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "uint8": "u8"}

# Options of other loaders, and what to do instead.
_INSTEAD = {
    "drop_last": 'last="drop" or last="keep"',
    "num_workers": "the daemon's threads serve all feeds: mixd.serve(data=..., workers=4)",
    "image_size": "size=224, or size=(224, 288)",
    "interpolate": 'interpolation="bilinear"',
    "augment": 'policy="rand-augment", color_jitter=0.4 and the like, or a mixd.Recipe',
    "transform": "mixd.torch.from_torchvision(transform) makes a recipe of one: recipe=...",
    "collate_fn": "mixup= and cutmix= mix; mixd.torch.replace_loader(loader) takes a whole DataLoader",
    "sampler": "rank=, world_size=, shuffle= and repeats= say which samples come",
    "pin_memory": 'device="cuda" delivers batches there',
    "prefetch_factor": "slots= is the number of batches that are made ahead",
    "persistent_workers": "the daemon's threads live as long as it does",
    "alpha": "mixup=",
    "split": 'the first argument: server.feed("train")',
}


class Server:
    """A daemon that serves a data set; `serve` and `connect` give one. Opens feeds."""

    def __init__(self, socket: Path, reconnect: float, taken: Part | None = None) -> None:
        self.socket, self._reconnect, self._part = socket, reconnect, taken
        self.pid, self._recipe, classes, (train, val) = daemon(os.fspath(socket))
        self.classes = [name for _, name in classes]
        """Readable names of the classes, in the order of their labels."""
        self.class_ids = [folder for folder, _ in classes]
        """Names of the classes' folders, in the order of their labels."""
        self.samples = {"train": train, "val": val}
        """How many samples each split has; 0 of val where the data set has no validation split, whose feeds are refused then."""
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()
        # Where nobody closes it. At the process's end, which may be that of a rank that failed, the kernel closes the connection.
        self._end = weakref.finalize(self, taken.release) if taken else None
        if self._end:
            self._end.atexit = False

    def feed(
        self,
        split: Literal["train", "val"] = "train",
        *,
        recipe: str | os.PathLike[str] | Recipe | None = None,
        batch_size: int | None = None,
        size: int | tuple[int, int] | None = None,
        grow: tuple[int | tuple[int, int], int, int] | None = None,
        crop: str | Crop | None = None,
        interpolation: Literal["bilinear", "bicubic"] | None = None,
        flip: bool | float | None = None,
        policy: str | None = None,
        color_jitter: str | float | Sequence[float] | ColorJitter | None = None,
        grayscale: float | None = None,
        blur: float | Sequence[float] | Blur | None = None,
        solarize: float | Sequence[float] | Solarize | None = None,
        warp: Literal["nearest", "bilinear", "bicubic"] | None = None,
        fill: Sequence[int] | None = None,
        erase: str | float | Erase | None = None,
        mixup: float | Literal["default"] | None = "default",
        cutmix: float | Literal["default"] | None = "default",
        mix_prob: float | None = None,
        mix_switch: float | None = None,
        lam: Literal["per-image", "per-pair", "per-batch"] | None = None,
        fold: bool | None = None,
        pairing: Literal["shuffle", "second-batch", "reverse", "roll"] | None = None,
        mixup_off_epoch: int | None = None,
        repeats: int | None = None,
        views: int | None = None,
        shuffle: bool | str | None = None,
        seed: int = 0,
        last: Literal["keep", "drop"] = "keep",
        smoothing: float = 0.0,
        dtype: Any = "f32",
        layout: Literal["nchw", "nhwc"] = "nchw",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        slots: int | None = None,
        digest: bool = False,
        share: str | None = None,
        delivery: Literal["lossless", "latest"] | None = None,
        max_lag: float | None = None,
        start: Literal["now", "next-epoch"] | tuple[int, int] = "now",
        device: Any = "cpu",
        reconnect: float | None = None,
        **unknown: object,
    ) -> Feed:
        """Opens a feed of one split, or joins a shared one.

        recipe: whose values are the defaults of the other options: a preset's name (`mixd recipe` lists them), a .toml file, or a
            `mixd.Recipe`. By default the daemon's (`mixd serve --recipe`), else the lesson. A feed of `val` takes its validation view.
        batch_size: rows; 64 of train, 128 of val.
        size: pixels of a side, or height and width; the recipe's.
        grow: a smaller size, the last epoch of it and the first of the full size, between which views grow by multiples of 32 pixels; `batch.x`
            has the epoch's shape; the recipe's, if `size` is not given.
        crop: what part of an image: "squash", "squash_center:152", "short_center:256", "random_resized_crop",
            "random_resized_crop:0.35,1", "pad_crop:4", "pad_crop:4,reflect", or a `mixd.Crop`; the recipe's.
        interpolation: filter of the resize; the recipe's.
        flip: probability of a horizontal flip; True is 0.5; the recipe's.
        policy: operations drawn for each view: "none", "rand-augment", "rand-augment:2,9", "trivial-augment-wide", "auto-augment", "3-augment", or
            a string of timm's such as "rand-m9-mstd0.5-inc1"; the recipe's.
        color_jitter: extents of brightness, contrast and saturation, then of hue, then the probability of all of it; one number is that of the first
            three; or a `mixd.ColorJitter`; the recipe's.
        grayscale: probability of an image in gray; the recipe's.
        blur: probability, or that and two bounds of the standard deviation in pixels, or a `mixd.Blur`; the recipe's.
        solarize: probability, or that and the threshold, or a `mixd.Solarize`; the recipe's.
        warp, fill: filter of the policy's rotations, shears and translations, and red, green and blue of what these show beyond the image, 0 to
            255; the recipe's.
        erase: probability of an erased box (0 in normalized values), or "0.25,pixel" (normal noise), or a `mixd.Erase`; the recipe's.
        mixup: α of Beta(α, α), or None or 0 for no mixup; the recipe's (the lesson's 0.4, unless `cutmix` is given).
        cutmix: CutMix's α, or None or 0; the recipe's. Given with mixup, one of them by chance.
        mix_prob: probability that anything is mixed; 1.
        mix_switch: probability of CutMix where mixup is given, too; 0.5.
        lam: one λ (CutMix: one box) per image, pair of rows or batch; per image.
        fold: whether mixup's λ is max(λ, 1 - λ); true in the lesson, else false.
        pairing: partners from a shuffle of the batch, a second batch, the batch in reverse, or a roll by one row; shuffle.
        mixup_off_epoch: the first epoch without any mixing; never.
        repeats: how often each sample comes in a row, in epochs of the usual length; 1.
        views: of each sample, one row after the other; `batch_size`, which counts rows, is a multiple of it; 1.
        shuffle: a new order each epoch, or "shards:8", a shuffle within 8 shards at a time (for sets that are larger than the disk cache); true of
            train, false of val.
        seed: of all randomness.
        last: whether rows that do not fill the last batch are kept.
        smoothing: ε of label smoothing, for soft targets (`mixd.torch.DataLoader`).
        dtype: f32, f16, bf16, or u8 (raw pixels), or torch's or numpy's of these.
        layout: nchw, or nhwc.
        mean, std: of each channel, of pixel values in [0, 1]; the recipe's.
        rank, world_size: which part of each epoch; from torch.distributed, where it is initialized, or the variables RANK and WORLD_SIZE, else 0
            of 1, so also in children of multiprocessing. A task of several of Slurm, Open MPI or MPICH without any of these is refused.
        slots: batches that there is room for; 4.
        digest: whether each batch carries a digest (`batch.is_intact()`).
        share: trainers that name the same share, with the same spec, read the same batches in the same memory.
        delivery: of a shared feed: lossless (all wait for the slowest), or latest (nobody waits; the slow skip batches).
        max_lag: seconds for which one may keep the others of a lossless shared feed waiting before it is evicted; 300.
        start: now, next-epoch, or (epoch, index).
        device: where images lie: cpu (shared memory), or a CUDA device of this process, cuda (torch's current one) or cuda:N, or torch's of these.
        reconnect: seconds to wait for the next daemon when this one has died; 30, and 0 where it is this process's own.

        Raises `SpecError`, which names the value and what it may be; `NoRoomError`, or another `RefusedError`, where the daemon cannot serve it;
        `NoDaemonError` where none answers.
        """
        # The options as they were given, to open another feed with them.
        given = dict(locals())
        del given["self"], given["unknown"]
        for name in unknown:
            raise SpecError(f"{name} is no option of a feed ({_INSTEAD.get(name, 'help(mixd.Server.feed) lists them')})")
        if share is None and (delivery, max_lag) != (None, None):
            raise SpecError("bad feed spec: delivery and max_lag are for feeds that are shared (name a share, or leave them out)")
        rank, world_size = world(rank, world_size)
        options = {
            "split": split,
            "recipe": _recipe(recipe),
            "batch_size": batch_size,
            "size": _joined(size, "x"),
            "grow": None if grow is None else _grow(grow),
            "crop": None if crop is None else str(crop),
            "interpolation": interpolation,
            "flip": {True: 0.5, False: 0.0}[flip] if isinstance(flip, bool) else flip,
            "policy": policy,
            "color_jitter": _text(color_jitter),
            "grayscale": grayscale,
            "blur": _text(blur),
            "solarize": _text(solarize),
            "warp": warp,
            "fill": list(fill) if isinstance(fill, Iterable) else fill,
            "erase": _text(erase),
            "shuffle": shuffle,
            "seed": seed,
            "last": last,
            "repeats": repeats,
            "views_per_sample": views,
            "mixup": None if mixup == "default" else mixup,
            "cutmix": None if cutmix == "default" else cutmix,
            "no_mixup": mixup is None,
            "no_cutmix": cutmix is None,
            "mix_prob": mix_prob,
            "mix_switch": mix_switch,
            "lambda": lam,
            "fold": fold,
            "pairing": pairing,
            "mixup_off_epoch": mixup_off_epoch,
            "digest": digest,
            "dtype": _dtype(dtype),
            "layout": layout,
            "mean": list(mean) if isinstance(mean, Iterable) else mean,
            "std": list(std) if isinstance(std, Iterable) else std,
            "rank": rank,
            "world_size": world_size,
            "slots": slots,
        }
        extra = {
            "smoothing": smoothing,
            "share": share,
            "delivery": delivery,
            "max_lag": max_lag,
            "start": _joined(start, ","),
            "device": _device(device),
        }
        spec = Spec(_json(options), _json(extra), self._recipe)
        try:
            feed = Feed(self.socket, spec, self._reconnect if reconnect is None else _seconds(reconnect), self._part)
        except MixdError as error:
            if self._part:
                self._part.explain(error)
            raise
        feed.steps = recipe.steps if isinstance(recipe, Recipe) else ()
        feed._reopen = functools.partial(self.feed, **given | {"rank": rank, "world_size": world_size})
        self._feeds.add(feed)
        return feed

    def close(self) -> None:
        """Leaves the feeds that were opened through this, and ends the daemon where it is this process's own and no other `Server` has it."""
        self._close(failed=False)

    def _close(self, *, failed: bool) -> None:
        """Closes it, for the time being where a job's rank has `failed` and may be started again."""
        with contextlib.ExitStack() as ends:
            if self._part and self._end and self._end.detach():
                ends.callback(self._part.release, wait=True, failed=failed)
            for feed in self._feeds:
                ends.callback(feed.close)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a server belongs to the process that made it, and is not pickled (there: mixd.connect({os.fspath(self.socket)!r}))"
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        is_exit = isinstance(error, SystemExit) and error.code in (None, 0)
        self._close(failed=error is not None and not is_exit)

    def __repr__(self) -> str:
        return f"<mixd.Server: pid {self.pid} on {self.socket}>"


def connect(socket: str | os.PathLike[str] | None = None, *, reconnect: float = 30.0) -> Server:
    """Finds a daemon that runs (`mixd serve`), by default on $MIXD_SOCKET or the default socket.

    Feeds wait `reconnect` seconds for the next daemon when this one has died, and go on with the next batch. Raises `NoDaemonError`.
    """
    path = check_path(Path(socket or os.environ.get("MIXD_SOCKET") or default_socket()).absolute())
    return Server(path, _seconds(reconnect))


def serve(data: str | os.PathLike[str], **options: object) -> Server:
    """Serves an image folder, its .tgz or .tar, or shards (also of an object store) by a daemon of this process or its job, which is started if need be.

    `options` are those of `mixd serve`, with _ for -, such as `workers=4`, `cache="2G"`, `cache_file=path`, `splits={"val": "test"}` (folders of the
    splits, from `data` or absolute), `holdout=0.1` (a tenth of each training class as the validation split). A process by itself shares one
    daemon among its servers of the same data and options; it ends with the last of them and their feeds (`close`, `with`, `del`), and with the
    process, however that ends. The ranks of a job share one on each machine: those of torchrun, Ray Train, Slurm, Open MPI and MPICH, those that
    WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT describe, and children of `torch.multiprocessing.spawn`. Where the process that launched them has
    a daemon of these data and options, as Lightning's first rank may, they share that. A job's daemon ends when all have left it
    (`close`, or the end of a `with` block without an exception) or the job's launcher has ended. Ranks that end otherwise, also at the end of their
    script, may be started again: the daemon waits for that for two minutes, while the launcher runs.

    A changed data archive, recipe or configuration file or MIXD_ variable gives another daemon. Changes within a data folder, and of files that a
    configuration file names, do not: close all servers first. `socket` names another place for the daemon, `cache_file` files that one daemon at a
    time may have: close the server that has them before another is started there with other options.

    Raises `NoDaemonError`, with the daemon's own message, where it does not come up. Its log goes to standard error of the process that has started
    it, while that lives and reads it.
    """
    socket = options.pop("socket", None)
    if not isinstance(socket, str | os.PathLike | None):
        raise SpecError(f"socket is {socket!r}: it must be a path")
    # A path would lose one of the slashes of an address in an object store.
    place = data if isinstance(data, str) and "://" in data else Path(data)
    taken = part(place, options, None if socket is None else Path(os.fspath(socket)))
    try:
        return Server(taken.path, 0.0, taken)
    except BaseException as error:
        if isinstance(error, NoDaemonError):
            taken.explain(error)
        taken.release(failed=True)
        raise


def _dtype(dtype: object) -> str:
    """The name of an element type, whosever it is."""
    name = getattr(dtype, "__name__", None) or str(dtype)
    name = name.removeprefix("torch.")
    return _DTYPES.get(name, name)


def _joined(value: Any, separator: str) -> Any:
    """A sequence of numbers, numpy's and torch's too, as one text; anything else as it is."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return separator.join(map(str, value)) if isinstance(value, tuple | list) else value


def _grow(value: Any) -> str:
    """A smaller size and two epochs as the text that the option takes."""
    try:
        size, first, full = value
    except (TypeError, ValueError):
        raise SpecError(f"grow is {value!r}: it must be a size and two epochs, such as (128, 0, 50)") from None
    return f"{_joined(size, 'x')},{first},{full}"


def _seconds(reconnect: Any) -> float:
    """For how long a feed waits for the next daemon, checked."""
    try:
        seconds = math.nan if isinstance(reconnect, str | bytes) else float(reconnect)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise SpecError(f"reconnect is {reconnect!r}: it must be a number of seconds, 0 or more")
    return seconds


def _text(value: Any) -> str | None:
    """A number, a sequence of numbers or a stage of a recipe as the text that its option takes."""
    return None if value is None else str(_joined(value, ","))


def _json(options: dict[str, Any]) -> str:
    """Options as JSON; numbers of numpy and torch are plain ones."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise SpecError(f"{value!r} is a {type(value).__name__}, which no option of a feed takes")

    for name, value in options.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise SpecError(f"bad feed spec: {name} is {value}: it must be finite")
    return json.dumps(options, default=plain)


def _recipe(recipe: str | os.PathLike[str] | Recipe | None) -> str | dict[str, Any] | None:
    """A recipe as the native half takes it."""
    return recipe.to_dict() if isinstance(recipe, Recipe) else os.fspath(recipe) if isinstance(recipe, os.PathLike) else recipe


def _device(device: object) -> str:
    """The name of a device; of torch's current one where it has no number."""
    name, torch = str(device), sys.modules.get("torch")
    return f"cuda:{torch.cuda.current_device()}" if name == "cuda" and torch and torch.cuda.is_available() else name
