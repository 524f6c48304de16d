"""Data sets of several kinds, and parts of them, through `mixd.serve`."""

import itertools
import os
import subprocess
import tarfile
from pathlib import Path

import mixd
import pytest
from mixd.launch import program

from ..conftest import SAMPLE_DATA


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample data as shards, in its own order."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    command = [program(), "pack", "--data", str(SAMPLE_DATA), "--out", str(out), "--in-order", "--shard-size", "500K"]
    subprocess.run(command, check=True, capture_output=True)
    return out


def digests(data: str | Path, **options: object) -> list[int]:
    """The digests of an epoch of plain batches."""
    with (
        mixd.serve(data, workers=1, cache="64M", **options) as server,
        server.feed("train", batch_size=32, size=32, digest=True, seed=4) as feed,
    ):
        return [batch.digest for batch in feed]


def test_shards_give_the_batches_of_their_folder(shards: Path) -> None:
    folder = digests(SAMPLE_DATA)
    assert digests(shards) == folder
    pattern = f"{shards}/train-{{000000..{len(list(shards.glob('train-*.tar'))) - 1:06}}}.tar"
    assert digests(pattern) == folder


def test_a_shuffle_within_shards_takes_one_shard_after_the_other(shards: Path) -> None:
    with mixd.serve(shards, workers=1, cache="64M") as server:
        feed = server.feed("train", batch_size=10, size=16, shuffle="shards:1", mixup=None)
        assert feed.spec["shuffle"] == "shards:1"
        orders = [[sample for batch in feed for sample in batch.sample_id.tolist()] for _ in range(2)]
        counts = []
        for path in sorted(shards.glob("train-*.tar")):
            with tarfile.open(path) as tar:
                counts.append(sum(not name.endswith(".cls") for name in tar.getnames()))
        shard_of = [nth for nth, count in enumerate(counts) for _ in range(count)]
        assert len(counts) > 3
        for order in orders:
            assert sorted(order) == list(range(feed.samples))
            assert len(list(itertools.groupby(order, lambda sample: shard_of[sample]))) == len(counts)
        assert orders[0] != orders[1]
        feed.close()
        with pytest.raises(mixd.SpecError, match="shards:8"):
            server.feed("train", size=16, shuffle="shards")
    with mixd.serve(SAMPLE_DATA, workers=1, cache="64M") as server, pytest.raises(mixd.MixdError, match="neither shards nor tables"):
        server.feed("train", size=16, shuffle="shards:2")


def test_parts_are_chosen_by_options() -> None:
    with (
        mixd.serve(SAMPLE_DATA, max_samples=40, exif="apply", workers=1, cache="64M") as server,
        server.feed("train", batch_size=8, size=32) as feed,
    ):
        assert feed.samples == 40
    with (
        mixd.serve(SAMPLE_DATA / "train", splits={"train": "."}, holdout=0.2, workers=1, cache="64M") as server,
        server.feed("val", batch_size=8, size=32) as feed,
    ):
        assert feed.samples == 40


def test_a_set_without_validation_says_so_and_trains(tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(SAMPLE_DATA / "train")
    with mixd.serve(tmp_path, workers=1, cache="64M") as server, server.feed("train", batch_size=32, size=32) as feed:
        assert server.samples == {"train": 200, "val": 0}
        assert sum(len(batch) for batch in feed) == 200
        with pytest.raises(mixd.SpecError, match="no validation split"):
            server.feed("val", size=32)


def test_what_cannot_be_opened_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(mixd.NoDaemonError, match="expected DATA/train/<class>/<image>"):
        mixd.serve(tmp_path)


def test_addresses_are_not_among_the_arguments_of_a_process() -> None:
    splits = {"train": str(SAMPLE_DATA / "train"), "val": str(SAMPLE_DATA / "val")}
    with mixd.serve(SAMPLE_DATA, splits=splits, workers=1, cache="64M") as server:
        daemon = Path(f"/proc/{server.pid}")
        # The shell above it, too.
        parent = next(line.split()[1] for line in (daemon / "status").read_text().splitlines() if line.startswith("PPid:"))
        for process in (daemon, Path(f"/proc/{parent}")):
            arguments = (process / "cmdline").read_bytes()
            assert b"serve" in arguments and b"--workers=1" in arguments
            assert os.fsencode(SAMPLE_DATA) not in arguments
    with pytest.raises(mixd.NoDaemonError) as raised:
        mixd.serve("http://127.0.0.1:1/train-000.tar?X-Amz-Signature=0123secret", store_timeout=0.1, workers=1)
    assert "http://127.0.0.1:1/train-000.tar" in str(raised.value)
    assert "0123secret" not in str(raised.value)
