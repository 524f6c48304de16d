"""Data-parallel training under torchrun, on one machine and on two that are this one."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import EXAMPLES, SAMPLE_DATA, environment, is_alive, job_name, until

Lines = list[dict[str, Any]]


def torchrun(*arguments: object, **variables: str) -> "subprocess.Popen[str]":
    """Starts ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    own = environment(OMP_NUM_THREADS="1", **variables)
    return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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


def daemons(ranks: list[Lines]) -> set[int]:
    """The process ids of the daemons that served."""
    return {line["daemon"] for rank in ranks for line in rank}


def test_the_ranks_of_a_machine_share_a_daemon_and_each_epoch(tmp_path: Path) -> None:
    ended(torchrun("--standalone", "--nproc-per-node", 2, EXAMPLES / "ddp.py", SAMPLE_DATA, "--epochs", 2, "--journal", tmp_path))
    ranks = logs(tmp_path)
    check(ranks, 2)
    [daemon] = daemons(ranks)
    until("the daemon has ended with the last rank", lambda: not is_alive(daemon), 5.0)


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


def two_agents(*arguments: object, **variables: str) -> "list[subprocess.Popen[str]]":
    """Starts a job of two agents that meet at an address of this machine; `variables` have {node} in them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ("--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1", "--master-port", port)
    own = [{name: value.format(node=node) for name, value in variables.items()} for node in range(2)]
    return [torchrun(*command, "--node-rank", node, *arguments, **own[node]) for node in range(2)]


def test_two_machines_have_a_daemon_each_and_one_epoch_between_them(tmp_path: Path) -> None:
    for node in range(2):
        (tmp_path / f"machine-{node}").mkdir()
    arguments = (EXAMPLES / "ddp.py", SAMPLE_DATA, "--epochs", 2, "--journal", tmp_path)
    ended(*two_agents(*arguments, XDG_RUNTIME_DIR=str(tmp_path / "machine-{node}")))
    ranks = logs(tmp_path)
    check(ranks, 2)
    assert len(daemons(ranks)) == 2


def test_two_agents_of_a_machine_share_a_daemon(tmp_path: Path) -> None:
    ended(*two_agents(EXAMPLES / "ddp.py", SAMPLE_DATA, "--epochs", 2, "--journal", tmp_path))
    ranks = logs(tmp_path)
    check(ranks, 2)
    [daemon] = daemons(ranks)
    until("the daemon has ended with the last agent", lambda: not is_alive(daemon), 5.0)


# Each rank notes its daemon; in their first life they die together.
MORTAL = f"""
import os, pathlib, signal, time
import mixd
folder, restart = pathlib.Path(os.environ["FOLDER"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
server = mixd.serve(data={str(SAMPLE_DATA)!r})
server.feed("train", size=16).next_batch()
(folder / f"{{restart}}-{{os.environ['RANK']}}").write_text(str(server.pid))
end = time.monotonic() + 60
while len(list(folder.glob(restart + "-?"))) < 2:
    assert time.monotonic() < end
    time.sleep(0.005)
if restart == "0": os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("meeting", [(), ("--standalone",)])
def test_a_daemon_outlives_the_restart_of_ranks_behind_a_wrapper(tmp_path: Path, meeting: tuple[str, ...]) -> None:
    code, wrapper = tmp_path / "mortal.py", tmp_path / "wrapper.sh"
    code.write_text(MORTAL)
    wrapper.write_text(f"#!/bin/sh\n{sys.executable} {code}\nexit $?\n")
    wrapper.chmod(0o700)
    options = (*meeting, "--max-restarts", 2, "--monitor-interval", 0.1, "--nproc-per-node", 2)
    ended(torchrun(*options, "--no-python", wrapper, FOLDER=str(tmp_path)))
    said = {path.name: path.read_text() for path in tmp_path.glob("?-?")}
    assert set(said) == {"0-0", "0-1", "1-0", "1-1"} and len(set(said.values())) == 1
    until("the daemon has ended with the agent", lambda: not is_alive(int(said["1-0"])), 5.0)


def test_processes_of_mp_spawn_share_a_daemon(tmp_path: Path) -> None:
    code = tmp_path / "spawn.py"
    code.write_text(f"""
import os
import mixd, torch
def train(rank, has_variables, barrier):
    if has_variables:
        os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": {job_name()!r}, "RANK": str(rank), "WORLD_SIZE": "4"}}
    with mixd.serve(data={str(SAMPLE_DATA)!r}) as server:
        feed = server.feed("train", batch_size=10, size=16, **{{}} if has_variables else {{"rank": rank, "world_size": 4}})
        rows = sum(len(batch) for batch in feed)
        os.write(1, f"{{server.pid}} {{rows}} {{feed.spec['rank']}}\\n".encode())
        # One that comes when all others have left finds another daemon.
        barrier.wait(60)
if __name__ == "__main__":
    for has_variables in (True, False):
        torch.multiprocessing.spawn(train, (has_variables, torch.multiprocessing.get_context("spawn").Barrier(4)), 4)
""")
    own = environment(OMP_NUM_THREADS="1")
    run = subprocess.run([sys.executable, code], env=own, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    for group in (lines[:4], lines[4:]):
        assert len({pid for pid, _, _ in group}) == 1
        assert sorted((int(rows), int(rank)) for _, rows, rank in group) == [(50, rank) for rank in range(4)]


# Lightning runs the whole script again as the other ranks.
LIGHTNING = f"""
import os
import lightning, mixd.torch, torch
class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 16 * 16, 10)
    def train_dataloader(self):
        feed = server.feed("train", batch_size=25, size=16)
        os.write(1, f"served {{server.pid}} {{mixd.serve(data=data).pid}} {{feed.spec['rank']}} {{feed.spec['world_size']}}\\n".encode())
        return mixd.torch.DataLoader(feed, "label")
    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.layer(x.flatten(1)), y)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)
data = {str(SAMPLE_DATA)!r}
server = mixd.serve(data=data)
quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
lightning.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", **quiet).fit(Classifier())
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_lightnings_ranks_share_the_daemon_that_the_first_had_before_them(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    code = tmp_path / "train.py"
    code.write_text(LIGHTNING)
    run = subprocess.run([sys.executable, code], env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = sorted(line.split()[1:] for line in run.stdout.splitlines() if line.startswith("served"))
    [daemon] = {pid for first, second, *_ in said for pid in (first, second)}
    assert [line[2:] for line in said] == [["0", "2"], ["1", "2"]]
    until("the daemon has ended with the ranks", lambda: not is_alive(int(daemon)), 5.0)


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
