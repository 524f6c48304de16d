"""Images with several labels, from a table: what trainers get, and what they must not be given."""

import csv
from collections.abc import Iterator
from pathlib import Path

import mixd
import pytest
import torch
from mixd.torch import BCEMixedLoss, DataLoader, MixedLoss
from torch import nn

from ..conftest import SAMPLE_DATA

CLASSES = ["dark", "n01440764", "n02102040", "odd"]


def labels_of(path: Path, nth: int) -> list[str]:
    """Its folder, and others by its number; of every seventh none."""
    if nth % 7 == 6:
        return []
    return [path.parent.name, *(["odd"] if nth % 2 else []), *(["dark"] if nth % 3 == 0 else [])]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A table of some of the sample data, and the labels of each of its files."""
    images = sorted(path for folder in CLASSES[1:3] for path in (SAMPLE_DATA / "train" / folder).iterdir())
    rows = {str(path.relative_to(SAMPLE_DATA)): labels_of(path, nth) for nth, path in enumerate(images)}
    file = tmp_path_factory.mktemp("table") / "labels.csv"
    with file.open("w", newline="") as to:
        writer = csv.writer(to)
        writer.writerow(["file_name", "labels"])
        writer.writerows((name, "|".join(labels)) for name, labels in rows.items())
    return file, rows


@pytest.fixture(scope="module")
def server(table: tuple[Path, dict[str, list[str]]]) -> Iterator[mixd.Server]:
    with mixd.serve(SAMPLE_DATA, labels=table[0], cache="64M", workers=1) as server:
        yield server


def expected(table: tuple[Path, dict[str, list[str]]], ids: list[int]) -> torch.Tensor:
    """The rows of 0 and 1 of some samples, from the table itself; samples are in the order of their names."""
    names = sorted(table[1])
    return torch.tensor([[float(name in table[1][names[at]]) for name in CLASSES] for at in ids])


def test_batches_have_the_sets_that_their_labels_number(server: mixd.Server, table: tuple[Path, dict[str, list[str]]]) -> None:
    with server.feed("train", batch_size=8, size=32, mixup=None) as feed:
        assert feed.class_ids == CLASSES
        batch = feed.next_batch()
        assert batch.label_sets is feed.label_sets and feed.label_sets is not None
        of = [sorted(feed.label_sets[at]) for at in batch.label_a.tolist()]
        rows = expected(table, batch.sample_id.tolist()).tolist()
        assert of == [[at for at, value in enumerate(row) if value] for row in rows]
        assert () in feed.label_sets


def test_a_loader_gives_multi_hot_rows_mixed_as_the_images_are(server: mixd.Server, table: tuple[Path, dict[str, list[str]]]) -> None:
    with server.feed("train", batch_size=8, size=32, mixup=0.4, seed=3) as feed:
        batch = feed.next_batch()
        own, partner = expected(table, batch.sample_id.tolist()), expected(table, batch.partner_id.tolist())
        lam = batch.lam.torch().unsqueeze(1)
        mixed = lam * own + (1 - lam) * partner
        feed.seek(0)
        _, y = next(iter(DataLoader(feed)))
        assert torch.allclose(y, mixed, atol=1e-6) and y.dtype == torch.float32
        feed.seek(0)
        _, y = next(iter(DataLoader(feed, "label")))
        assert torch.equal(y, own)
        feed.seek(0)
        tensors = feed.next_batch().to("cpu")
        logits = torch.randn(8, len(CLASSES))
        loss = BCEMixedLoss()
        right = nn.functional.binary_cross_entropy_with_logits(logits, mixed)
        for target in (batch, tensors, tensors.targets):
            assert torch.allclose(loss(logits, target), right, rtol=1e-5)
        loss.eval()
        assert torch.allclose(loss(logits, batch), nn.functional.binary_cross_entropy_with_logits(logits, own), rtol=1e-5)


def test_what_knows_one_label_an_image_is_refused(server: mixd.Server) -> None:
    with server.feed("train", batch_size=8, size=32, smoothing=0.1) as feed:
        with pytest.raises(mixd.SpecError, match=r"smoothing 0\.1 is for one label an image"):
            DataLoader(feed)
        batch = feed.next_batch()
        with pytest.raises(ValueError, match="several labels"):
            MixedLoss(nn.CrossEntropyLoss())(torch.zeros(8, len(CLASSES)), batch)
        with pytest.raises(ValueError, match=r"smoothing is 0\.1"):
            BCEMixedLoss(0.1)(torch.zeros(8, len(CLASSES)), batch)


def test_one_label_an_image_has_no_sets(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    images = sorted((SAMPLE_DATA / "train" / CLASSES[1]).iterdir())
    table.write_text("".join(f"{path.relative_to(SAMPLE_DATA)},{nth % 3}\n" for nth, path in enumerate(images)))
    with mixd.serve(SAMPLE_DATA, labels=table, cache="64M", workers=1) as server, server.feed("train", batch_size=4, size=32) as feed:
        batch = feed.next_batch()
        assert feed.label_sets is None and batch.label_sets is None
        assert batch.label_a.tolist() == [at % 3 for at in batch.sample_id.tolist()] and feed.classes == ["0", "1", "2"]
