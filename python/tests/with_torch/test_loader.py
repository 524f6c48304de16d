"""The adapter of the shape of torch's DataLoader."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mixd
import pytest
import torch
from mixd.torch import DataLoader, MixedLoss, Targets
from torch import nn

from ..conftest import Daemon


def test_each_for_is_an_epoch_of_pairs(daemon: Daemon) -> None:
    server = daemon.connect()
    loader = DataLoader(server.feed("train", batch_size=32, size=16), targets="object")
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
    _, soft = next(iter(DataLoader(feed)))
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


def test_it_is_a_dataloader_with_a_dataset_and_samplers(daemon: Daemon) -> None:
    server = daemon.connect()
    loader = DataLoader(server.feed("train", batch_size=32, size=16, last="drop"))
    assert isinstance(loader, torch.utils.data.DataLoader) and (loader.num_workers, loader.drop_last) == (0, True)
    assert (len(loader), len(loader.batch_sampler), len(loader.dataset), len(loader.dataset.classes)) == (6, 6, 200, 10)
    assert loader.dataset.class_to_idx[server.classes[3]] == 3
    assert (loader.batch_sampler.batch_size, loader.batch_sampler.drop_last) == (32, True)
    for sampler in (loader.sampler, loader.batch_sampler):
        sampler.set_epoch(5)
        assert loader.feed.place == (5, 0)
    assert sum(1 for _ in loader) == 6 and loader.feed.place == (6, 0)


def test_two_iterators_over_a_loader_have_places_of_their_own(daemon: Daemon) -> None:
    loader = DataLoader(daemon.connect().feed("val", batch_size=10, size=16))
    pairs = [(x.clone(), y.clone(), again.clone(), labels.clone()) for (x, y), (again, labels) in zip(loader, loader, strict=True)]
    assert len(pairs) == 5
    # Of two epochs, which are in the order of the index both.
    assert all(torch.equal(x, again) and torch.equal(y, labels) for x, y, again, labels in pairs)


def in_threads(count: int, read: Callable[[], list[bytes]]) -> list[list[bytes]]:
    """What each of several threads reads that begin at once."""
    begin = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: read() if begin.wait(60) >= 0 else [], range(count)))


def test_threads_may_share_a_loader_or_an_iterator(daemon: Daemon) -> None:
    server = daemon.connect()
    # The same in each epoch.
    wanted = [x.numpy().tobytes() for x, _ in DataLoader(server.feed("val", batch_size=2, size=8))]
    loader = DataLoader(server.feed("val", batch_size=2, size=8, slots=16))
    for _ in range(4):
        iterator = iter(loader)
        taken = in_threads(8, lambda iterator=iterator: [x.numpy().tobytes() for x, _ in iterator])  # type: ignore[misc]
        assert sorted(itertools.chain(*taken)) == sorted(wanted)
    twice = in_threads(4, lambda: [x.numpy().tobytes() for _ in range(2) for x, _ in loader])
    assert twice == [wanted * 2] * 4


def test_two_iterators_over_a_feed_are_an_error(daemon: Daemon) -> None:
    feed = daemon.connect().feed("val", batch_size=10, size=16)
    with pytest.raises(RuntimeError, match="another iterator over this feed was begun"):
        list(zip(feed, feed, strict=False))
    assert len(list(feed)) == 5


def test_padded_rows_are_kept_dropped_or_masked(daemon: Daemon) -> None:
    server = daemon.connect()

    def labels(padded: Any) -> list[list[int]]:
        ranks = [DataLoader(server.feed("val", batch_size=4, size=16, rank=rank, world_size=7), padded=padded) for rank in range(7)]
        assert all(len(list(loader)) == len(loader) for loader in ranks)
        return [[label for _, y in loader for label in y.tolist()] for loader in ranks]

    kept, dropped, masked = labels("keep"), labels("drop"), labels("mask")
    # 50 images: 8 rows each, of which six repeat others.
    assert [len(rank) for rank in kept] == [len(rank) for rank in masked] == [8] * 7
    assert [len(rank) for rank in dropped] == [8] + [7] * 6
    assert sorted(label for rank in dropped for label in rank) == [label for label in range(10) for _ in range(5)]
    assert [rank.count(-100) for rank in masked] == [0] + [1] * 6
    assert [[label for label in rank if label >= 0] for rank in masked] == dropped
    with pytest.raises(ValueError, match="only labels are masked"):
        DataLoader(server.feed("train", size=16), padded="mask")


def test_batches_come_as_dicts_by_option(daemon: Daemon) -> None:
    loader = DataLoader(daemon.connect().feed("val", batch_size=10, size=16), keys=("pixel_values", "labels"))
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (10, 3, 16, 16) and batch["labels"].tolist() == [0] * 5 + [1] * 5


def test_steps_of_a_recipe_run_on_the_trainers_side(daemon: Daemon) -> None:
    server = daemon.connect()
    plain = mixd.Recipe(train=mixd.TrainView(size=32))
    recipe = plain.then(lambda x: x.float() / 255).then(lambda x: x - 1)
    options: dict[str, Any] = {"batch_size": 20, "seed": 3, "dtype": "u8"}
    x, _ = next(iter(DataLoader(server.feed("train", recipe=recipe, **options))))
    raw, _ = next(iter(DataLoader(server.feed("train", recipe=plain, **options))))
    assert raw.dtype == torch.uint8 and torch.equal(x, raw.float() / 255 - 1)


def test_views_of_a_sample_come_in_a_row_and_local_ones_beside_them(daemon: Daemon) -> None:
    server = daemon.connect()
    common: dict[str, Any] = {"seed": 3, "last": "drop"}
    views = DataLoader(server.feed("train", recipe="dino", size=48, batch_size=20, **common))
    local = DataLoader(server.feed("train", recipe="dino-local", size=32, batch_size=80, **common))
    assert len(views) == len(local) == 20
    for (x, y), (small, labels) in zip(views, local, strict=True):
        assert (x.shape, small.shape) == ((20, 3, 48, 48), (80, 3, 32, 32))
        assert torch.equal(y[0::2], y[1::2]) and torch.equal(y[0::2], labels[0::8])
        assert not torch.equal(x[0::2], x[1::2])


def test_lightning_overfits_the_same_batches_in_each_epoch(daemon: Daemon) -> None:
    lightning = pytest.importorskip("lightning")
    server, seen = daemon.connect(), []

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            x, y = batch
            seen.append((self.current_epoch, x.sum().item()))
            return nn.functional.cross_entropy(self.model(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    options = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for overfit in (2, 0.0):
        seen.clear()
        loader = DataLoader(server.feed("train", batch_size=40, size=16))
        lightning.Trainer(**options, overfit_batches=overfit).fit(Model(), loader)
        epochs = [[value for epoch, value in seen if epoch == nth] for nth in range(3)]
        assert [len(values) for values in epochs] == [2 if overfit else 5] * 3
        assert (epochs[0] == epochs[1] == epochs[2]) == bool(overfit)


def test_set_epoch_keeps_a_place_that_was_resumed(daemon: Daemon) -> None:
    server = daemon.connect()
    loader = DataLoader(server.feed("train", batch_size=40, size=16))
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    other = DataLoader(server.feed("train", batch_size=40, size=16))
    other.load_state_dict(loader.state_dict())
    other.set_epoch(0)
    assert other.feed.place == (0, 2) and sum(1 for _ in other) == 3
    other.set_epoch(1)
    next(iter(other))
    other.set_epoch(1)
    assert other.feed.place == (1, 0)


def test_padding_that_is_dropped_never_ends_the_epochs(daemon: Daemon) -> None:
    loader = DataLoader(daemon.connect().feed("val", batch_size=1, size=16, rank=5, world_size=8), padded="drop")
    assert (len(loader), len(loader.feed), len(loader.sampler)) == (6, 7, 7)
    state = loader.state_dict() | {"index": 6}
    loader.load_state_dict(state)
    assert [sum(1 for _ in loader) for _ in range(2)] == [6, 6]


def test_lightning_predicts(daemon: Daemon) -> None:
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def predict_step(self, batch: Any, _: int) -> Any:
            return batch[1]

    loader = DataLoader(daemon.connect().feed("val", batch_size=20, size=16))
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    labels = torch.cat(trainer.predict(Model(), loader))
    assert labels.tolist() == [label for label in range(10) for _ in range(5)]


def test_new_gives_a_loader_of_another_order(daemon: Daemon) -> None:
    server = daemon.connect()
    loader = DataLoader(server.feed("val", batch_size=20, size=16))
    assert loader.new(shuffle=False, drop_last=False) is loader
    mixed = DataLoader(server.feed("train", batch_size=32, size=16, last="drop", share="all", seed=4), targets="label", device="cpu")
    other = mixed.new(shuffle=False, drop_last=False)
    assert mixed.new(shuffle=False, drop_last=False) is other and mixed.new(shuffle=True) is mixed
    assert (len(mixed), len(other), other.targets, other.feed.spec["share"]) == (6, 7, "label", None)
    assert torch.cat([y for _, y in other]).tolist() == [label for label in range(10) for _ in range(20)]
    assert (mixed.feed.spec["seed"], mixed.feed.place) == (other.feed.spec["seed"], (0, 0))


def test_one_batch_is_the_one_that_the_next_loop_begins_with(daemon: Daemon) -> None:
    loader = DataLoader(daemon.connect().feed("train", batch_size=32, size=16))
    for epoch in range(2):
        first = loader.one_batch()[0].clone()
        batches = [x.clone() for x, _ in loader]
        assert len(batches) == 7 and torch.equal(batches[0], first)
        assert loader.feed.place == (epoch + 1, 0)
    next(iter(loader))
    first = loader.one_batch()[0].clone()
    assert loader.feed.place == (2, 1) and torch.equal(next(iter(loader))[0], first) and loader.feed.place == (3, 1)


@pytest.mark.parametrize("targets", ["label", "soft", "object"])
def test_pictures_of_a_batch_are_drawn_under_its_classes(daemon: Daemon, targets: Any) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    options: dict[str, Any] = {"batch_size": 20, "size": 16, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "layout": "nhwc"}
    options |= {"mixup": None} if targets == "label" else {}
    feed = daemon.connect().feed("train", smoothing=0.1, **options)
    loader = DataLoader(feed, targets=targets, keys=("x", "y"))
    loader.show_batch(max_n=5)
    batch = feed.next_batch()
    figure = pyplot.gcf()
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == 5
    for at, axis in enumerate(drawn):
        expected = batch.x.torch()[at] * torch.tensor(options["std"]) + torch.tensor(options["mean"])
        assert torch.allclose(torch.tensor(axis.images[0].get_array()), expected, atol=1e-3)
        own, partner = (feed.classes[labels[at]] for labels in (batch.label_a.tolist(), batch.label_b.tolist()))
        share = 100 * batch.lam.tolist()[at]
        both = targets != "label" and own != partner and 0.5 < share < 99.5
        shares = sorted([(share, own), (100 - share, partner)], reverse=True)
        assert axis.get_title() == (" +\n".join(f"{one:.0f} % {name}" for one, name in shares) if both else own)
    pyplot.close(figure)


def test_results_are_drawn_green_and_red(daemon: Daemon) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    loader = DataLoader(daemon.connect().feed("val", batch_size=6, size=16, dtype="u8"))
    labels, logits = torch.tensor([0, 0, 0, 0, 0, 3]), nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 0, 3]), 10)
    for out in (labels, logits):
        loader.show_results(loader.one_batch(), out, nrows=1)
        titles = [axis.title for axis in pyplot.gcf().axes]
        assert [title.get_color() for title in titles] == ["green"] * 5 + ["red"]
        assert titles[5].get_text() == f"{loader.classes[1]}\n{loader.classes[3]}"
        pyplot.close("all")


def test_options_of_torchs_loader_are_refused_with_the_remedy(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", size=16)
    with pytest.raises(ValueError, match="num_workers is no option of a loader over a feed"):
        DataLoader(feed, num_workers=8)


def test_accelerate_skips_batches_and_takes_the_loader_as_it_is(daemon: Daemon) -> None:
    accelerate = pytest.importorskip("accelerate")
    loader = DataLoader(daemon.connect().feed("train", batch_size=32, size=16))
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.prepare(loader) is loader
    whole = [x.clone() for x, _ in loader]
    loader.set_epoch(0)
    rest = [x.clone() for x, _ in accelerate.skip_first_batches(loader, 3)]
    assert len(rest) == 4 and all(torch.equal(x, again) for x, again in zip(whole[3:], rest, strict=True))


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
