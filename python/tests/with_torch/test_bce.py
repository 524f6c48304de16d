"""Binary cross-entropy of mixed batches, beside timm's."""

import pytest
import torch
from mixd.torch import BCEMixedLoss, Targets

timm_loss = pytest.importorskip("timm.loss")


def batch(classes: int = 7) -> tuple[torch.Tensor, Targets]:
    """Random logits, and what was mixed."""
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(16, classes, generator=generator)
    label_a, label_b = (torch.randint(classes, (16,), generator=generator) for _ in range(2))
    return logits, Targets(label_a, label_b, torch.rand(16, generator=generator))


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("sum_classes", [False, True])
def test_it_is_timm_s_of_the_soft_targets(threshold: float | None, sum_classes: bool) -> None:
    logits, targets = batch()
    ours = BCEMixedLoss(0.1, threshold, sum_classes=sum_classes)
    # timm smooths labels only: soft targets have it already.
    theirs = timm_loss.BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold, sum_classes=sum_classes)
    soft = targets.soft(7, 0.1)
    assert torch.allclose(ours(logits, targets), theirs(logits, soft), rtol=1e-6)
    assert torch.allclose(ours(logits, soft), theirs(logits, soft), rtol=1e-6)
    assert torch.allclose(ours(logits, targets.label_a), theirs(logits, targets.label_a), rtol=1e-6)
    ours.eval()
    assert torch.allclose(ours(logits, targets), theirs(logits, targets.label_a), rtol=1e-6)


def test_its_gradient_is_the_difference_to_the_soft_targets() -> None:
    logits, targets = batch()
    logits.requires_grad_()
    BCEMixedLoss(reduction="sum")(logits, targets).backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad, logits.detach().sigmoid() - targets.soft(7), atol=1e-6)


def test_its_options_are_checked_by_name() -> None:
    with pytest.raises(ValueError, match=r"smoothing is 1\.5"):
        BCEMixedLoss(1.5)
    with pytest.raises(ValueError, match="reduction is 'all'"):
        BCEMixedLoss(reduction="all")  # type: ignore[arg-type]
    logits, targets = batch()
    assert BCEMixedLoss(reduction="none")(logits, targets).shape == (16, 7)
    assert BCEMixedLoss(reduction="none", sum_classes=True)(logits, targets).shape == (16,)
