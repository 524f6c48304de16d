"""Data-parallel training under torchrun, on one machine and on two that are this one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import EXAMPLES, SAMPLE_DATA, environment, until

Lines = list[dict[str, Any]]


def torchrun(*arguments: object) -> "subprocess.Popen[str]":
    """Starts ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(*groups: "subprocess.Popen[str]") -> None:
    """Waits for their end."""
    for group in groups:
        _, error = group.communicate(timeout=120)
        assert group.returncode == 0, error


def logs(folder: Path, ranks: int = 2) -> list[Lines]:
    """What each rank wrote down."""
    return [[json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()] for rank in range(ranks)]


def check(ranks: list[Lines], epochs: int) -> None:
    """Both ranks step together, through disjoint halves of each epoch, with the same gradients."""
    assert [(line["epoch"], line["index"]) for line in ranks[0]] == [(line["epoch"], line["index"]) for line in ranks[1]]
    assert len(ranks[0]) == epochs * 4
    for one, other in zip(*ranks, strict=True):
        assert one["gradient"] == other["gradient"] and any(one["gradient"])
    for epoch in range(epochs):
        parts = [[sample for line in rank if line["epoch"] == epoch for sample in line["sample_id"]] for rank in ranks]
        assert [len(part) for part in parts] == [100, 100]
        assert sorted(parts[0] + parts[1]) == list(range(200))
    first, second = ([line["sample_id"] for line in ranks[0] if line["epoch"] == epoch] for epoch in (0, epochs - 1))
    assert epochs == 1 or first != second


def test_a_rank_that_comes_late_or_whose_first_rank_failed_is_told_so(tmp_path: Path) -> None:
    code = tmp_path / "ranks.py"
    code.write_text(
        f"""
import os, pathlib, sys, time
import mixd
rank, left = os.environ["LOCAL_RANK"], pathlib.Path({str(tmp_path)!r}, "left")
for data in ({str(SAMPLE_DATA)!r}, {str(tmp_path / "nowhere")!r}):
    while rank == "1" and not left.exists(): time.sleep(0.01)
    try:
        with mixd.serve(data=data): pass
    except mixd.NoDaemonError as error: (left.parent / f"said-{{rank}}").open("a").write(str(error) + "\\n")
    left.touch()
"""
    )
    ended(torchrun("--standalone", "--nproc-per-node", 2, code))
    assert "exit code 1" in (tmp_path / "said-0").read_text()
    late, failed = (tmp_path / "said-1").read_text().splitlines()
    assert "left its daemon before this rank came" in late and "did not come up" in failed


def daemons(ranks: list[Lines]) -> set[int]:
    """The process ids of the daemons that served."""
    return {line["daemon"] for rank in ranks for line in rank}


def test_the_ranks_of_a_machine_share_a_daemon_and_each_epoch(tmp_path: Path) -> None:
    ended(torchrun("--standalone", "--nproc-per-node", 2, EXAMPLES / "ddp.py", SAMPLE_DATA, "--epochs", 2, "--journal", tmp_path))
    ranks = logs(tmp_path)
    check(ranks, 2)
    [daemon] = daemons(ranks)
    until("the daemon has ended with the last rank", lambda: not os.path.exists(f"/proc/{daemon}"), 5.0)


def test_a_training_that_is_resumed_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    command = ("--standalone", "--nproc-per-node", 2, EXAMPLES / "ddp.py", SAMPLE_DATA, "--epochs", 2)
    ended(torchrun(*command, "--journal", whole))
    ended(torchrun(*command, "--journal", parts, "--save", parts / "run.pt", "--stop-after", 5))
    assert len(logs(parts)[0]) == 5
    ended(torchrun(*command, "--journal", parts, "--save", parts / "run.pt", "--resume"))
    check(logs(parts), 2)

    def strip(ranks: list[Lines]) -> list[Lines]:
        return [[{key: value for key, value in line.items() if key != "daemon"} for line in rank] for rank in ranks]

    assert strip(logs(parts)) == strip(logs(whole))


def test_two_machines_have_a_daemon_each_and_one_epoch_between_them(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ("--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1", "--master-port", port)
    groups = [
        torchrun(*command, "--node-rank", rank, EXAMPLES / "ddp.py", SAMPLE_DATA, "--epochs", 2, "--journal", tmp_path) for rank in range(2)
    ]
    ended(*groups)
    ranks = logs(tmp_path)
    check(ranks, 2)
    assert len(daemons(ranks)) == 2


VALIDATION = f"""
import itertools, json, os, pathlib, sys
import mixd.torch, torch
import torch.distributed as dist
from torch import nn
from torch.utils import data
from torchvision import datasets, transforms
dist.init_process_group("gloo")
chain = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()])
images = datasets.ImageFolder({str(SAMPLE_DATA / "val")!r}, chain)
torch.manual_seed(0)
layers = nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(1024, 10)
model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers)).eval()
for padded, batch_size in itertools.product(("keep", "mask", "drop"), (10, 16)):
    theirs = data.DataLoader(images, batch_size, sampler=data.DistributedSampler(images, shuffle=False))
    loader, sums = mixd.torch.replace_loader(theirs, padded=padded), torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for x, y in loader:
            assert len(x)
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y, reduction="sum")
            sums += torch.tensor([(y >= 0).sum(), (logits.argmax(1) == y).sum(), loss], dtype=torch.float64)
    dist.all_reduce(sums)
    if dist.get_rank() == 0:
        assert len(loader.dataset) == 50
        with pathlib.Path(sys.argv[1]).open("a") as log: log.write(json.dumps([padded, *sums.tolist()]) + "\\n")
# Gloo's threads abort a process whose interpreter ends while they hold tensors (pytorch/pytorch#179291): this one does not end.
dist.barrier()
dist.destroy_process_group()
os._exit(0)
"""


def test_ranks_validate_as_one_process_does(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    code = tmp_path / "validation.py"
    code.write_text(VALIDATION)
    found = []
    for ranks in (1, 3):
        ended(torchrun("--standalone", "--nproc-per-node", ranks, code, tmp_path / f"{ranks}.jsonl"))
        found.append([json.loads(line) for line in (tmp_path / f"{ranks}.jsonl").read_text().splitlines()])
    # 50 images: one of the three ranks has one twice, among others or as a batch of its own.
    assert [[padded, count] for padded, count, *_ in found[1]] == [["keep", 51]] * 2 + [["mask", 50]] * 2 + [["drop", 50]] * 2
    for one, three in list(zip(*found, strict=True))[2:]:
        assert three == [*one[:3], pytest.approx(one[3], rel=1e-5)] and one[1] == 50
