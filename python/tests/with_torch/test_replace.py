"""Loaders that are replaced: the same batches' distribution, length and labels."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import mixd
import pytest
import torch
from mixd.torch import replace_loader
from torch import Tensor
from torch.utils import data

from ..conftest import SAMPLE_DATA

pytest.importorskip("torchvision")
pytest.importorskip("timm")
from timm.data import Mixup, create_transform
from torchvision import datasets, transforms
from torchvision.transforms import v2

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTER = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor(), NORMALIZE])
RANDOM = transforms.Compose([transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE])


MIX = v2.CutMix(alpha=1.0, num_classes=10)


class Paths(datasets.ImageFolder):  # type: ignore[misc]
    """Gives paths, too."""

    def __getitem__(self, at: int) -> Any:
        return *super().__getitem__(at), self.samples[at][0]


def folder(split: str, transform: Any) -> Any:
    """The sample data as torchvision has it."""
    return datasets.ImageFolder(str(SAMPLE_DATA / split), transform)


def collected(loader: Any) -> tuple[Tensor, Tensor]:
    """An epoch's images and labels."""
    pairs = [(x.clone(), y.clone()) for x, y in loader]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def test_a_validation_loader_s_batches_are_the_same() -> None:
    theirs: Any = data.DataLoader(folder("val", CENTER), 16)
    ours = replace_loader(theirs)
    assert isinstance(ours, data.DataLoader) and (len(ours), ours.batch_size) == (len(theirs), 16)
    assert ours.dataset.class_to_idx == theirs.dataset.class_to_idx and ours.dataset.samples == theirs.dataset.samples
    (x, y), (expected, labels) = collected(ours), collected(theirs)
    assert torch.equal(y, labels)
    # A level is 0.017: pixels are equal where libjpeg-turbo decodes, but for the order of operations in floats.
    assert (x - expected).abs().mean() < 0.03


def test_a_training_loader_s_batches_have_the_same_law() -> None:
    theirs = data.DataLoader(folder("train", RANDOM), 32, shuffle=True, drop_last=True)
    ours = replace_loader(theirs, seed=3)
    assert len(ours) == len(theirs) == 6
    first, second = collected(ours), collected(ours)
    assert not torch.equal(first[1], second[1])
    means = torch.stack([collected(ours)[0].mean((0, 2, 3)) for _ in range(4)]).mean(0)
    expected = torch.stack([collected(theirs)[0].mean((0, 2, 3)) for _ in range(4)]).mean(0)
    assert (means - expected).abs().max() < 0.08, (means, expected)
    spreads = [collected(loader)[0].std() for loader in (ours, theirs)]
    assert abs(spreads[0] - spreads[1]) < 0.08


@pytest.mark.parametrize("shape", ["object", "function", "closure"])
def test_torchvision_s_mixes_are_recognised(shape: str) -> None:
    images = folder("train", RANDOM)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=10), v2.CutMix(alpha=1.0, num_classes=10)], p=[0.25, 0.75])

    def collate(rows: Any) -> Any:
        return mix(*data.default_collate(rows))

    ours = replace_loader(
        data.DataLoader(images, 20, shuffle=True, collate_fn={"function": collate, "closure": collate, "object": mix}[shape])
    )
    spec = ours.feed.spec["mix"]
    assert (spec["mixup"], spec["cutmix"], spec["switch"], spec["per"], spec["pairing"]) == (0.2, 1.0, 0.75, "per-batch", "roll")
    x, y = next(iter(ours))
    assert x.shape == (20, 3, 32, 32) and y.shape == (20, 10) and torch.allclose(y.sum(1), torch.ones(20))


def test_the_mixes_of_torchvision_s_references_are_recognised() -> None:
    def mix(name: str, p: float) -> Any:
        made = type(name, (), {"__module__": "transforms", "__call__": lambda *rows: rows})()
        made.num_classes, made.p, made.alpha, made.inplace = 10, p, 0.3, False
        return made

    both = transforms.RandomChoice([mix("RandomMixUp", 0.5), mix("RandomCutMix", 0.5)])
    spec = replace_loader(data.DataLoader(folder("train", RANDOM), 20, shuffle=True, collate_fn=both)).feed.spec["mix"]
    found = [spec[key] for key in ("mixup", "cutmix", "prob", "switch", "per", "pairing")]
    assert found == [0.3, 0.3, 0.5, 0.5, "per-batch", "roll"]
    uneven = transforms.RandomChoice([mix("RandomMixUp", 0.5), mix("RandomCutMix", 1.0)])
    with pytest.raises(mixd.SpecError, match="the collate function"):
        replace_loader(data.DataLoader(folder("train", RANDOM), 20, shuffle=True, collate_fn=uneven))


def test_timm_s_mixup_and_transform_are_recognised() -> None:
    transform = create_transform(
        32, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel", interpolation="bicubic"
    )
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10, mode="pair")
    ours = replace_loader(data.DataLoader(folder("train", transform), 20, shuffle=True, collate_fn=mix))
    spec = ours.feed.spec
    assert (spec["mix"]["mixup"], spec["mix"]["per"], spec["mix"]["pairing"], spec["smoothing"]) == (0.8, "per-pair", "reverse", 0.1)
    assert spec["augment"]["policy"].startswith("rand-m9-mstd0.5") and spec["erase"]["mode"] == "pixel"
    _, y = next(iter(ours))
    assert y.min() >= 0.0099


def test_options_may_mix_and_a_daemon_s_recipe_does_not(tmp_path: Path) -> None:
    _, y = next(iter(replace_loader(data.DataLoader(folder("train", RANDOM), 20, shuffle=True), mixup=0.2)))
    assert y.shape == (20, 10)
    with mixd.serve(data=SAMPLE_DATA, recipe="deit") as server:
        ours = replace_loader(data.DataLoader(folder("train", CENTER), 20), server=server)
        spec = ours.feed.spec
        assert (spec["flip"], spec["repeats"], spec["erase"]["prob"], spec["augment"]["policy"]) == (0, 1, 0, "none")
        random_ones = replace_loader(data.DataLoader(folder("train", RANDOM), 20, shuffle=True), server=server).feed.spec
        assert (random_ones["repeats"], random_ones["mix"]["mixup"], random_ones["erase"]["prob"]) == (1, "none", 0)


def test_plain_samplers_give_each_process_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for shuffle in (False, True):
        theirs = data.DataLoader(folder("val", CENTER), 16, shuffle=shuffle)
        assert len(collected(replace_loader(theirs))[1]) == 50


def test_a_subset_has_its_images_alone() -> None:
    images = folder("train", RANDOM)
    chosen = sorted(random.Random(1).sample(range(len(images)), 60))
    ours = replace_loader(data.DataLoader(data.Subset(images, chosen), 10, shuffle=True))
    _, labels = collected(ours)
    assert Counter(labels.tolist()) == Counter(images.targets[at] for at in chosen)


def test_a_transform_that_ends_in_bytes_gives_bytes() -> None:
    transform = transforms.Compose([transforms.Resize((32, 32)), transforms.PILToTensor()])
    theirs = data.DataLoader(folder("val", transform), 16)
    (x, y), (expected, labels) = collected(replace_loader(theirs)), collected(theirs)
    assert x.dtype == torch.uint8 and torch.equal(y, labels)
    assert (x.float() - expected.float()).abs().mean() < 1


def test_a_folder_of_any_name_is_taken_as_it_is(tmp_path: Path) -> None:
    for path in (SAMPLE_DATA / "val").glob("*/*"):
        link = tmp_path / "pictures" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    theirs = data.DataLoader(datasets.ImageFolder(str(tmp_path / "pictures"), CENTER), 16)
    ours = replace_loader(theirs)
    assert torch.equal(collected(ours)[1], collected(theirs)[1]) and len(ours.dataset) == 50


def test_ranks_and_repeats_are_those_of_the_sampler() -> None:
    images = folder("train", RANDOM)
    sampler: Any = data.DistributedSampler(images, num_replicas=3, rank=2, seed=4)
    ours = replace_loader(data.DataLoader(images, 8, sampler=sampler))
    assert (ours.feed.spec["rank"], ours.feed.spec["world_size"], ours.feed.spec["seed"], ours.feed.spec["shuffle"]) == (2, 3, 4, True)
    assert len(ours) == len(data.DataLoader(images, 8, sampler=sampler))
    ours.sampler.set_epoch(3)
    assert ours.feed.place == (3, 0)
    from timm.data.distributed_sampler import RepeatAugSampler

    ours = replace_loader(data.DataLoader(images, 8, sampler=RepeatAugSampler(images, num_replicas=2, rank=1, num_repeats=3)))
    assert (ours.feed.spec["repeats"], ours.feed.spec["rank"], ours.feed.spec["world_size"]) == (3, 1, 2)


def test_an_epoch_set_on_the_replaced_sampler_is_the_loaders() -> None:
    sampler: Any = data.DistributedSampler(folder("train", RANDOM), num_replicas=2, rank=1, seed=4)
    ours = replace_loader(data.DataLoader(sampler.dataset, 32, sampler=sampler))
    # As a script goes on that was resumed.
    sampler.set_epoch(5)
    first, _ = collected(ours)
    assert ours.feed.place == (6, 0)
    sampler.set_epoch(6)
    next(iter(ours))
    sampler.set_epoch(5)
    assert torch.equal(collected(ours)[0], first)
    sampler.set_epoch(4)
    shown, _ = ours.one_batch()
    assert ours.feed.place == (4, 0) and torch.equal(shown, next(iter(ours))[0])
    sampler.set_epoch(6)
    collected(ours)
    # Without set_epoch the loader advances by itself.
    assert ours.feed.place == (7, 0)
    collected(ours)
    assert ours.feed.place == (8, 0)
    ours.set_epoch(2)
    collected(ours)
    assert ours.feed.place == (3, 0)


def test_padding_and_names_are_those_of_the_loader() -> None:
    images = folder("val", CENTER)
    samplers: list[Any] = [data.DistributedSampler(images, 3, rank, shuffle=False) for rank in range(3)]
    loaders = [replace_loader(data.DataLoader(images, 9, sampler=own), padded="drop", keys=("x", "y")) for own in samplers]
    labels = [label for ours in loaders for batch in ours for label in batch["y"].tolist()]
    assert sorted(labels) == images.targets


def test_what_cannot_be_replaced_is_refused_by_name() -> None:
    images = folder("train", RANDOM)
    weights = data.WeightedRandomSampler([1.0] * len(images), len(images))
    relabelled = folder("train", RANDOM)
    relabelled.samples[0] = (relabelled.samples[0][0], 5)

    def sometimes(rows: Any) -> Any:
        return MIX(*data.default_collate(rows)) if random.random() < 0.5 else data.default_collate(rows)

    def scaled(rows: Any) -> Any:
        x, y = data.default_collate(rows)
        return MIX(2 * x, y)

    cases: list[tuple[Any, str]] = [
        (data.DataLoader(data.TensorDataset(torch.zeros(3, 1))), "TensorDataset"),
        (data.DataLoader(images, 8, sampler=weights), "WeightedRandomSampler"),
        (data.DataLoader(images, 8, collate_fn=lambda rows: rows), "the collate function '<lambda>'"),
        (data.DataLoader(images, batch_size=None), "batch sampler"),
        (data.DataLoader(images, 8, collate_fn=sometimes), "the collate function 'sometimes'"),
        (data.DataLoader(images, 8, collate_fn=scaled), "the collate function 'scaled'"),
        (data.DataLoader(images, 8, collate_fn=v2.Compose([MIX, MIX])), "the collate function"),
        (data.DataLoader(images, 8, collate_fn=v2.RandomApply([MIX], p=0.5)), "the collate function"),
        (data.DataLoader(images, 8, collate_fn=Mixup(mixup_alpha=0.2, num_classes=1000)), "num_classes is 1000"),
        (data.DataLoader(images, 8, collate_fn=Mixup(mixup_alpha=0.2, num_classes=10, correct_lam=False)), "such options"),
        (data.DataLoader(data.Subset(images, [3, 3]), 2), "a Subset with an image twice"),
        (data.DataLoader(data.Subset(images, range(15)), 2), "these classes"),
        (data.DataLoader(Paths(images.root, RANDOM), 8), "a dataset of type Paths"),
        (data.DataLoader(relabelled, 8), "labels of its own"),
        (data.DataLoader(folder("train", transforms.Compose([transforms.Lambda(lambda x: x), *RANDOM.transforms])), 8), "Lambda"),
        (data.DataLoader(folder("train", transforms.RandomResizedCrop(32)), 8), "leaves PIL images"),
        (data.DataLoader(data.Subset(images, [5, 3]), 2), "a Subset in an order of its own"),
        (data.DataLoader(datasets.ImageFolder(images.root, RANDOM, target_transform=int), 8), "target_transform"),
    ]
    for loader, named in cases:
        with pytest.raises(mixd.SpecError, match=named):
            replace_loader(loader)
