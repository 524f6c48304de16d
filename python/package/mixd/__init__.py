"""mixd: batches for training, decoded once per machine, mixed, and read in shared memory without a copy.

    import mixd

    with mixd.serve(data="imagenette2-160") as server:  # or mixd.connect() to a daemon that runs
        train, valid = server.feed("train", batch_size=64, mixup=0.4), server.feed("val")
        for epoch in range(5):
            for batch in train.epoch(epoch):
                loss = criterion(model(batch.x.to(device)), batch)  # criterion = mixd.torch.MixedLoss(nn.CrossEntropyLoss())

`mixd.torch` has losses of mixed batches, a DataLoader, and what takes the place of one; nothing else here needs torch or numpy.
"""

import importlib

from ._native import Array, Batch
from .errors import (
    CorruptCursorError,
    DaemonGoneError,
    EvictedError,
    FeedEndedError,
    MixdError,
    NoDaemonError,
    NoRoomError,
    RefusedError,
    SpecError,
)
from .feed import Epoch, Feed, Place
from .recipe import Augment, Blur, ColorJitter, Crop, Erase, Grow, LaterViews, Mix, Recipe, Solarize, TrainView, ValView, Warping
from .server import Server, connect, serve

# The names of version 0.1's first drafts.
DaemonGone, Evicted, FeedEnded, NoDaemon, SpecRefused = DaemonGoneError, EvictedError, FeedEndedError, NoDaemonError, SpecError


def __getattr__(name: str) -> object:
    """Imports `mixd.torch` when it is first asked for, and torch with it."""
    if name == "torch":
        return importlib.import_module("mixd.torch")
    raise AttributeError(f"module 'mixd' has no attribute {name!r}")


__all__ = [
    "Array",
    "Augment",
    "Batch",
    "Blur",
    "ColorJitter",
    "CorruptCursorError",
    "Crop",
    "DaemonGone",
    "DaemonGoneError",
    "Epoch",
    "Erase",
    "Evicted",
    "EvictedError",
    "Feed",
    "FeedEnded",
    "FeedEndedError",
    "Grow",
    "LaterViews",
    "Mix",
    "MixdError",
    "NoDaemon",
    "NoDaemonError",
    "NoRoomError",
    "Place",
    "Recipe",
    "RefusedError",
    "Server",
    "Solarize",
    "SpecError",
    "SpecRefused",
    "TrainView",
    "ValView",
    "Warping",
    "connect",
    "serve",
]
