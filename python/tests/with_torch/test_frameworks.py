"""Frameworks that bring a training loop of their own, run over loaders that took the place of torch's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from mixd.torch import DataLoader, replace_loader
from torch import Tensor, nn
from torch.utils import data

from ..conftest import SAMPLE_DATA, Daemon, environment, is_alive, until
from .test_replace import CENTER, RANDOM, folder

matplotlib.use("agg")
from matplotlib import pyplot

NAMES = ("pixel_values", "labels")


class Net(nn.Module):
    """In the shape of Hugging Face's: a loss and logits; it notes what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))
        self.seen: list[float] = []

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(pixel_values)
        if self.training:
            self.seen.append(pixel_values.sum().item())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(out: Path, stop_at: int | None = None) -> Any:
    """Hugging Face's Trainer over replaced loaders."""
    transformers = pytest.importorskip("transformers")

    class Replaced(transformers.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            return replace_loader(data.DataLoader(folder("train", RANDOM), 32, shuffle=True), keys=NAMES, seed=3)

        def get_eval_dataloader(self, _: Any = None) -> Any:
            return replace_loader(data.DataLoader(folder("val", CENTER), 16), keys=NAMES)

    class Stop(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == stop_at:
                control.should_save = control.should_training_stop = True

    options = transformers.TrainingArguments(
        str(out), num_train_epochs=3, learning_rate=0.01, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", seed=1
    )
    own = Replaced(
        Net(), options, callbacks=[Stop()], compute_metrics=lambda made: {"hits": (made.predictions.argmax(1) == made.label_ids).sum()}
    )
    return own


def test_hugging_faces_trainer_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    stopped = trainer(tmp_path / "parts", stop_at=10)
    stopped.train()
    resumed = trainer(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    seen = whole.model.seen
    # Of 7 batches an epoch: three of the second had been seen.
    assert len(seen) == len(set(seen)) == 21
    assert (stopped.model.seen, resumed.model.seen) == (seen[:10], seen[10:])
    assert all(torch.equal(one, other) for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    # What it measures is what a loop over torch's loader measures.
    with torch.no_grad():
        hits = sum(int((whole.model(x, y)["logits"].argmax(1) == y).sum()) for x, y in data.DataLoader(folder("val", CENTER), 16))
    assert abs(whole.evaluate()["eval_hits"] - hits) <= 1


def test_fastai_trains_predicts_and_shows(daemon: Daemon, tmp_path: Path) -> None:
    pytest.importorskip("fastai")
    from fastai.vision import all as fast
    from torchvision.models import resnet18

    fast.default_device(False)
    server = daemon.connect()
    train = DataLoader(server.feed("train", batch_size=32, size=32, mixup=None, last="drop"))
    valid = DataLoader(server.feed("val", batch_size=16, size=32))
    dls = fast.DataLoaders(train, valid)
    layers = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))
    learn = fast.Learner(dls, layers, loss_func=fast.CrossEntropyLossFlat(), metrics=fast.accuracy, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.fit_one_cycle(1, 0.01)
        learn.lr_find(num_it=8, show_plot=False)
        _, share = learn.validate()
        logits, labels = learn.get_preds()
        assert labels.tolist() == [label for label in range(10) for _ in range(5)]
        assert share == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        # All of the training images, in their order: the feed drops eight, and shuffles.
        assert learn.get_preds(ds_idx=0)[1].tolist() == [label for label in range(10) for _ in range(20)]
        matrix = fast.ClassificationInterpretation.from_learner(learn).confusion_matrix()
        assert matrix.sum() == 50 and matrix.trace() == round(share * 50)
        fast.ClassificationInterpretation.from_learner(learn).print_classification_report()
        for show in (dls.show_batch, learn.show_results, lambda: learn.show_results(ds_idx=0, max_n=4, figsize=(6, 6))):
            pyplot.close("all")
            show()
            assert pyplot.get_fignums()
        learn.summary()
        dls.cpu()
        fast.vision_learner(dls, resnet18, pretrained=False, loss_func=nn.CrossEntropyLoss()).fit(1)


# Two nodes that are this machine, one worker on each; the worker group fails once, and Ray starts it anew.
RAY = f"""
import os, pathlib, signal, sys, time
import ray
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer
folder = pathlib.Path(sys.argv[1])
def train():
    import mixd
    restart = "1" if (folder / "failed").exists() else "0"
    # The first daemon is the other worker's child, which Ray kills with all its children.
    end = time.monotonic() + 60
    while get_context().get_world_rank() == 0 and not (folder / f"{{restart}}-1").exists() and time.monotonic() < end: time.sleep(0.01)
    server = mixd.serve(data={str(SAMPLE_DATA)!r})
    feed = server.feed("train", batch_size=10, size=16)
    samples = [sample for batch in feed for sample in batch.sample_id.tolist()]
    note = " ".join(map(str, [server.pid, os.environ["RAY_RAYLET_PID"], *samples]))
    (folder / f"{{restart}}-{{get_context().get_world_rank()}}").write_text(note)
    while len(list(folder.glob(restart + "-?"))) < 2 and time.monotonic() < end: time.sleep(0.01)
    if restart == "0" and get_context().get_world_rank() == 0:
        (folder / "failed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if restart == "0": time.sleep(600)
local = {{"node_ip_address": "127.0.0.1", "num_cpus": 1}}
cluster = Cluster(initialize_head=True, head_node_args={{**local, "include_dashboard": False}})
cluster.add_node(**local)
ray.init(address=cluster.address, _node_ip_address="127.0.0.1")
run = RunConfig(storage_path=str(folder / "storage"), failure_config=FailureConfig(max_failures=1))
TorchTrainer(train, scaling_config=ScalingConfig(num_workers=2, resources_per_worker={{"CPU": 1}}), run_config=run).fit()
ray.shutdown()
cluster.shutdown()
"""


def test_the_workers_of_ray_train_share_a_daemon_that_outlives_their_restart(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # The third has nodes listen on the loopback only.
    own = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    variables = environment(**own, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    run = subprocess.run([sys.executable, "-c", RAY, tmp_path], env=variables, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    notes = {path.name: list(map(int, path.read_text().split())) for path in tmp_path.glob("?-?")}
    assert set(notes) == {"0-0", "0-1", "1-0", "1-1"}
    [daemon] = {note[0] for note in notes.values()}
    # A node each, and half of the epoch.
    assert len({note[1] for note in notes.values()}) == 2
    assert sorted(notes["1-0"][2:] + notes["1-1"][2:]) == list(range(200))
    until("the daemon has ended with the nodes", lambda: not is_alive(daemon), 5.0)
