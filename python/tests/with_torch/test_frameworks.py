"""Frameworks that bring a training loop of their own, run over loaders that took the place of torch's."""

from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from mixd.torch import DataLoader, replace_loader
from torch import Tensor, nn
from torch.utils import data

from ..conftest import Daemon
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
