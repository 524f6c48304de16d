"""The examples, run as their users run them; and the package's loop beside the trainer in Rust."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import EXAMPLES, SAMPLE_DATA, environment, mixd_output


def run(name: str, *arguments: object) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(line: str) -> list[float]:
    """The numbers of a line."""
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def test_the_lessons_network_learns() -> None:
    lines = run("train.py", SAMPLE_DATA, 3, 0.02, 16).splitlines()
    losses = [figures(line)[0] for line in lines]
    assert len(losses) == 3 and losses[2] < losses[0] < 3, lines


def test_a_set_without_validation_trains(tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(SAMPLE_DATA / "train")
    lines = run("train.py", tmp_path, 1, 0.02, 16).splitlines()
    assert len(lines) == 1 and re.fullmatch(r"epoch 0: train loss \d\.\d{3}, accuracy 0\.\d{3}", lines[0]), lines


@pytest.mark.skipif("MIXD_IMAGENETTE" not in os.environ, reason="the full data set is not there: MIXD_IMAGENETTE names its archive")
def test_the_lesson_is_as_accurate_as_the_reference() -> None:
    # The ranges of three seeds of the same training in plain PyTorch (docs/spec/batches.md#network: one epoch at a learning rate of 0.05,
    # mixup + label smoothing), widened by as much again as they span.
    [line] = run("train.py", os.environ["MIXD_IMAGENETTE"]).splitlines()
    ranges = [(2.044, 2.072), (0.321, 0.339), (1.596, 1.732), (0.416, 0.464)]
    for value, (low, high) in zip(figures(line), ranges, strict=True):
        assert low - (high - low) <= value <= high + (high - low), line


@pytest.mark.parametrize("loader", ["torch", "mixd"])
def test_one_loop_runs_over_either_loader(loader: str) -> None:
    pytest.importorskip("torchvision")
    [first, second] = run("from_dataloader.py", SAMPLE_DATA, "--loader", loader, "--epochs", 2).splitlines()
    for epoch, line in enumerate((first, second)):
        assert line.startswith(f"epoch {epoch}: 200 images, loss 2.") and line.endswith(" on 50"), line


@pytest.mark.parametrize("name", ["imagenet.py", "deit.py"])
def test_real_scripts_train_alike_once_their_loaders_are_replaced(name: str) -> None:
    pytest.importorskip("timm")
    options = ("--size", 32, "--batch-size", 20, "--epochs", 4)
    runs = [run(name, SAMPLE_DATA, *options, *switch).splitlines() for switch in ([], ["--mixd"])]
    assert [line.split("; ")[0].split(" on ")[1] for line in runs[0] + runs[1]] == ["50"] * 8
    theirs, ours = ([figures(line)[0] for line in lines] for lines in runs)
    # Over 40 batches of 20; losses of single epochs vary by as much from seed to seed.
    assert abs(sum(theirs) - sum(ours)) / 4 < 0.08, runs
    assert ours[-1] < ours[0] + 0.05, runs


def test_dinos_views_come_from_two_feeds() -> None:
    assert "192 samples of 10 views [(16, 3, 224, 224), (16, 3, 96, 96)]" in run("dino.py", SAMPLE_DATA)


@pytest.mark.parametrize("name", ["lightning", "accelerate"])
def test_other_frameworks_take_feeds_as_they_are(name: str) -> None:
    pytest.importorskip(name)
    assert "14 steps: " in run(f"with_{name}.py", SAMPLE_DATA)


def test_bench_sets_a_loop_in_python_beside_the_trainer_in_rust(tmp_path: Path) -> None:
    options = ("--rounds", 2, "--seconds", 0.2, "--size", 32, "--python", sys.executable, "--json")
    result = json.loads(mixd_output("bench", "--data", SAMPLE_DATA, *options))
    assert result["python"]["images_per_s"] > 0 and 0 < result["python"]["of_rust"] < 10
    assert result["attach_ms"] < 1000
