"""The mixed loss: against the goldens, against soft targets, and without a trace on the loss that it wraps."""

import copy
import json
from typing import Any

import pytest
import torch
from mixd.torch import MixedLoss, Targets
from torch import Tensor, nn
from torch.nn import functional

from ..conftest import REFERENCE, Daemon


def case(batch: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Targets]:
    """Random logits and targets."""
    logits = (torch.randn(batch, classes, dtype=dtype) * 5).requires_grad_()
    return logits, Targets(torch.randint(classes, (batch,)), torch.randint(classes, (batch,)), torch.rand(batch))


@pytest.fixture(scope="module")
def goldens() -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    from safetensors.torch import load_file

    return load_file(REFERENCE / "loss_cases.safetensors"), json.loads((REFERENCE / "loss_cases.json").read_text())["cases"]


def test_values_and_gradients_are_the_goldens(goldens: tuple[dict[str, Tensor], list[dict[str, Any]]]) -> None:
    tensors, cases = goldens
    assert len(cases) > 50
    for golden in cases:
        key, name, reduction = golden["key"], golden["set"], golden["reduction"]
        logits = tensors[f"{name}.logits"].clone().requires_grad_()
        targets = Targets(tensors[f"{name}.y"], tensors[f"{name}.y1"], tensors[f"{name}.lam"])
        criterion = MixedLoss(nn.CrossEntropyLoss(label_smoothing=golden["eps"] or 0.0, reduction=reduction))
        criterion.train(golden["mixup"])
        loss = criterion(logits, targets)
        upstream = tensors[f"{name}.upstream"]
        (loss * upstream.to(loss.dtype)).sum().backward() if reduction == "none" else loss.backward()
        # docs/spec/golden.md#tolerances.
        largest = max(1.0, logits.abs().max().item())
        rows = len(logits) if reduction == "sum" else 1
        error = (loss.double().reshape(-1) - tensors[f"{key}.loss"].reshape(-1)).abs().max().item()
        assert error <= 2e-6 * largest * rows, f"{key}: loss off by {error}"
        assert logits.grad is not None
        weight = max(1.0, upstream.abs().max().item()) if reduction == "none" else 1.0
        error = (logits.grad.double() - tensors[f"{key}.grad"]).abs().max().item()
        assert error <= 2e-6 * weight, f"{key}: gradient off by {error}"


@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (1, 10), (7, 2), (64, 10), (5, 1000)])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_cross_entropy_against_soft_targets(batch: int, classes: int, epsilon: float, reduction: Any) -> None:
    torch.manual_seed(batch)
    logits, targets = case(batch, classes)
    soft = Targets(targets.label_a, targets.label_b, targets.lam.double()).soft(classes, epsilon)
    assert torch.allclose(soft.sum(1), torch.ones(()).to(soft)) and soft.shape == (batch, classes)
    expected = functional.cross_entropy(logits, soft.double(), reduction=reduction)
    modules = MixedLoss(nn.CrossEntropyLoss(label_smoothing=epsilon, reduction=reduction))
    function = MixedLoss(functional.cross_entropy, label_smoothing=epsilon, reduction=reduction)
    for criterion in (modules, function):
        loss = criterion(logits, targets)
        assert loss.shape == expected.shape
        assert torch.allclose(loss, expected, rtol=1e-6, atol=1e-7)
        (own,) = torch.autograd.grad(loss.sum(), logits)
        (theirs,) = torch.autograd.grad(expected.sum(), logits, retain_graph=True)
        assert torch.allclose(own, theirs, rtol=1e-6, atol=1e-7)


def test_each_image_has_its_own_weight() -> None:
    # As the lesson's code would have it, the batch's average weight would do; of these two images it does not.
    logits = torch.tensor([[9.0, 0.0], [0.0, 3.0]])
    targets = Targets(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([1.0, 0.5]))
    losses = [functional.cross_entropy(logits, labels, reduction="none") for labels in (targets.label_a, targets.label_b)]
    expected = (losses[0][0] + 0.5 * losses[0][1] + 0.5 * losses[1][1]) / 2
    assert torch.allclose(MixedLoss(nn.CrossEntropyLoss())(logits, targets), expected)


class Scaled(nn.Module):
    """A loss of one's own with parameters, that has been seen to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction: str | None = "sum"
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.seen: list[str | None] = []

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(self.reduction)
        if labels.max() > 5:
            raise IndexError("no such class")
        return self.scale * functional.cross_entropy(logits, labels, reduction=self.reduction or "none")


def test_the_wrapped_loss_is_never_changed() -> None:
    logits, targets = case(4, 6)
    wrapped = Scaled()
    criterion = MixedLoss(wrapped)
    assert criterion(logits, targets).shape == ()
    assert wrapped.reduction == "sum" and wrapped.seen == ["none", "none"]
    with pytest.raises(IndexError):
        criterion(logits, Targets(targets.label_a, torch.full((4,), 7), targets.lam))
    assert wrapped.reduction == "sum"
    # The parameters are the wrapped loss's own: they are seen, and get their gradients.
    assert [name for name, _ in criterion.named_parameters()] == ["loss.scale"]
    criterion(logits, targets).backward()
    assert wrapped.scale.grad is not None
    # It is a loss of its own with each call: what is set later holds.
    wrapped.reduction = "mean"
    sums = criterion(logits, targets)
    wrapped.reduction = None
    assert criterion(logits, targets).shape == (4,) and torch.allclose(criterion(logits, targets).mean(), sums)
    assert copy.deepcopy(criterion)(logits, targets).shape == (4,)


def test_nothing_is_mixed_in_eval_or_with_plain_labels() -> None:
    logits, targets = case(4, 6)
    loss = nn.CrossEntropyLoss(weight=torch.arange(1, 7).double(), label_smoothing=0.1)
    criterion = MixedLoss(loss)
    assert torch.equal(criterion(logits, targets.label_a), loss(logits, targets.label_a))
    criterion.eval()
    assert torch.equal(criterion(logits, targets), loss(logits, targets.label_a))


def test_class_weights_weigh_images_and_the_mean_is_over_images() -> None:
    logits, targets = case(8, 6)
    weight = torch.arange(1, 7).double()
    loss = MixedLoss(nn.CrossEntropyLoss(weight=weight))(logits, targets)
    soft = Targets(targets.label_a, targets.label_b, targets.lam.double()).soft(6).double()
    assert torch.allclose(loss, functional.cross_entropy(logits, soft, weight=weight))


def test_other_losses_are_mixed_the_same_way() -> None:
    logits, targets = case(8, 6)
    margin = MixedLoss(nn.MultiMarginLoss())(logits, targets)
    each = [functional.multi_margin_loss(logits, labels, reduction="none") for labels in (targets.label_a, targets.label_b)]
    assert torch.allclose(margin, (targets.lam * each[0] + (1 - targets.lam) * each[1]).mean())
    assert MixedLoss(functional.nll_loss)(logits.log_softmax(1), targets).shape == ()


@pytest.mark.parametrize("batch", [1, 3])
def test_losses_of_another_shape_are_refused(batch: int) -> None:
    def broad(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")[:, None].expand(-1, 2)

    logits, targets = case(batch, 6)
    with pytest.raises(ValueError, match="one value an image"):
        MixedLoss(broad)(logits, targets)


def test_wrong_use_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"Linear has no attribute `reduction`.*give a loss of torch.nn"):
        MixedLoss(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="weight: options are for functions"):
        MixedLoss(nn.CrossEntropyLoss(), weight=1)
    with pytest.raises(ValueError, match="must be mean, sum or none"):
        MixedLoss(nn.CrossEntropyLoss(), reduction="max")  # type: ignore[arg-type]
    assert "reduction=sum" in repr(MixedLoss(nn.CrossEntropyLoss(), reduction="sum"))


def test_batches_of_a_daemon_are_mixed(daemon: Daemon) -> None:
    server = daemon.connect()
    torch.manual_seed(0)
    for options in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": None}, {"batch_size": 1}):
        batch = server.feed("train", **{"batch_size": 16, "size": 16, **options}).next_batch()  # type: ignore[arg-type]
        logits = torch.randn(len(batch), 10)
        criterion = MixedLoss(nn.CrossEntropyLoss(label_smoothing=0.1))
        expected = functional.cross_entropy(logits, batch.to("cpu").targets.soft(10, 0.1))
        for target in (batch, batch.to("cpu"), batch.to("cpu").targets):
            assert torch.allclose(criterion(logits, target), expected, atol=1e-6)
