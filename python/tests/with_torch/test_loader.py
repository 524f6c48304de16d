"""The adapter of the shape of torch's DataLoader."""

import pytest
import torch
from mixd.torch import DataLoader, MixedLoss, Targets
from torch import nn

from ..conftest import Daemon


def test_each_for_is_an_epoch_of_pairs(daemon: Daemon) -> None:
    server = daemon.connect()
    loader = DataLoader(server.feed("train", batch_size=32, size=16))
    assert (len(loader), loader.batch_size, len(loader.classes)) == (7, 32, 10)
    first, second = ([(x.clone(), y) for x, y in loader] for _ in range(2))
    assert [len(x) for x, _ in first] == [32] * 6 + [8]
    assert not torch.equal(first[0][0], second[0][0])
    loader.set_epoch(0)
    assert all(torch.equal(x, again) for (x, _), (again, _) in zip(first, loader, strict=True))
    assert isinstance(first[0][1], Targets)
    logits = torch.randn(32, 10)
    assert MixedLoss(nn.CrossEntropyLoss())(logits, first[0][1]).shape == ()


def test_targets_are_what_was_asked_for(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", batch_size=32, size=16, smoothing=0.2)
    _, soft = next(iter(DataLoader(feed, targets="soft")))
    feed.seek(0)
    _, targets = next(iter(DataLoader(feed, targets="object")))
    assert torch.equal(soft, targets.soft(10, 0.2)) and soft.shape == (32, 10)
    feed.seek(0)
    _, labels = next(iter(DataLoader(feed, targets="label")))
    assert torch.equal(labels, targets.label_a)
    _, labels = next(iter(DataLoader(server.feed("val", size=16))))
    assert labels.dtype == torch.int64 and labels.tolist() == [label for label in range(10) for _ in range(5)]
    with pytest.raises(ValueError, match="must be object, soft or label"):
        DataLoader(feed, targets="hard")  # type: ignore[arg-type]


def test_it_holds_nothing_between_batches(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=32, size=16)
    for x, _ in DataLoader(feed):
        assert len(feed.held()) <= 2
        del x
        assert feed.held() == []


def test_it_is_stateful_as_torchdatas_loader_is(daemon: Daemon) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader.stateful").Stateful
    server = daemon.connect()
    loader = DataLoader(server.feed("train", batch_size=32, size=16, digest=True))
    assert isinstance(loader, stateful) and isinstance(loader.feed, stateful)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    rest = [x.clone() for x, _ in batches]
    other = DataLoader(server.feed("train", batch_size=32, size=16, digest=True))
    other.load_state_dict(state)
    assert (len(rest), len(other.feed.epoch())) == (4, 4)
    other.load_state_dict(state)
    assert all(torch.equal(x, again) for x, (again, _) in zip(rest, other, strict=True))


def test_an_example_can_be_kept_while_training_goes_on(daemon: Daemon) -> None:
    loader = DataLoader(daemon.connect().feed("train", batch_size=32, size=16))
    example, _ = next(iter(loader))
    expected = example.clone()
    assert [sum(1 for _ in loader) for _ in range(3)] == [7, 7, 7]
    assert torch.equal(example, expected)
