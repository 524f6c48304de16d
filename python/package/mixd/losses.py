"""Losses of mixed batches, and batches as tensors."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ._native import Array, Batch

__all__ = ["BCEMixedLoss", "MixedLoss", "Targets", "Tensors"]

Device = torch.device | str | int
_T = TypeVar("_T", bound="_Movable")


Sets = tuple[tuple[int, ...], ...]


class Mixed(Protocol):
    """Two labels an image, and the weight of the first: a `mixd.Batch`, `Tensors` and `Targets` have them."""

    @property
    def label_a(self) -> Any:
        """The class of each image, int64, `[B]`."""

    @property
    def label_b(self) -> Any:
        """The class of each image's partner, int64, `[B]`."""

    @property
    def lam(self) -> Any:
        """λ, float32, `[B]`."""


class _Movable:
    """A dataclass of tensors, and of what is none."""

    def _each(self: _T, move: Callable[[Tensor], Tensor]) -> _T:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: move(value) if isinstance(value, Tensor) else value for name, value in values.items()})

    def to(self: _T, device: Device, non_blocking: bool = False) -> _T:
        """Moves all tensors to `device`; those already there are not copied."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: _T) -> _T:
        """A copy in pinned memory."""
        return self._each(Tensor.pin_memory)


@dataclass
class Targets(_Movable):
    """What a mixed batch of images shows: of each image its own label, its partner's, and the weight of its own."""

    label_a: Tensor
    label_b: Tensor
    lam: Tensor
    label_sets: Sets | None = None
    """Where images have several labels: the sets of classes that the labels number."""

    def soft(self, classes: int, smoothing: float = 0.0) -> Tensor:
        """One row of probabilities an image, `[B, classes]`, as precise as λ: float32.

        `(1 - ε)(λ·e_a + (1 - λ)·e_b) + ε / classes`, which cross-entropy without smoothing of its own takes. Where images have several labels, `λ·m_a +
        (1 - λ)·m_b` with rows m of 0 and 1 (multi-hot), for binary cross-entropy; there is no smoothing of these.
        """
        if self.label_sets is not None:
            if smoothing:
                raise ValueError(f"smoothing is {smoothing}: it spreads one label, and these images have several (leave it out)")
            own, partner = (_multi_hot(self.label_sets, labels, classes) for labels in (self.label_a, self.label_b))
            return torch.lerp(partner, own, self.lam.unsqueeze(1))
        targets = torch.full((len(self.lam), classes), smoothing / classes, dtype=self.lam.dtype, device=self.lam.device)
        weight = self.lam.unsqueeze(1) * (1 - smoothing)
        # Added, not stored: both labels may be the same.
        targets.scatter_add_(1, self.label_a.unsqueeze(1), weight)
        return targets.scatter_add_(1, self.label_b.unsqueeze(1), (1 - smoothing) - weight)

    def __len__(self) -> int:
        return len(self.label_a)


# Classes of the sets of the last feeds, in rows of equal length, by the sets and the device. The sets are kept, so that no others have their id.
_rows: dict[tuple[int, torch.device], tuple[Sets, Tensor]] = {}
_ROWS_MAX = 4


def _rows_of(sets: Sets, device: torch.device) -> Tensor:
    """The classes of each set and one more, int32, `[sets, most + 1]`; -1 where a set has fewer."""
    key = (id(sets), device)
    known = _rows.get(key)
    if known is None:
        # A feed that was opened anew has the same sets in other objects.
        known = next((kept for (_, of), kept in list(_rows.items()) if of == device and kept[0] == sets), None)
        if known is None:
            most = max(map(len, sets)) + 1
            rows = torch.tensor([[*labels, *[-1] * (most - len(labels))] for labels in sets], dtype=torch.int32)
            known = (sets, rows.to(device))
        while len(_rows) >= _ROWS_MAX:
            _rows.pop(next(iter(_rows)), None)
        _rows[key] = (sets, known[1])
    return known[1]


def _multi_hot(sets: Sets, labels: Tensor, classes: int) -> Tensor:
    """A row of 0 and 1 for each label, which numbers a set, float32, `[B, classes]`."""
    rows = _rows_of(sets, labels.device)[labels].long()
    # What is none goes to a column of its own.
    rows = torch.where(rows < 0, classes, rows)
    return torch.zeros(len(labels), classes + 1, device=labels.device).scatter_(1, rows, 1.0)[:, :classes]


@dataclass
class Tensors(_Movable):
    """A batch as tensors on one device: what `batch.to(device)` gives. The fields are those of `mixd.Batch`; sample ids are int64 here."""

    x: Tensor
    label_a: Tensor
    label_b: Tensor
    lam: Tensor
    partner: Tensor
    sample_id: Tensor
    partner_id: Tensor
    crop: Tensor
    cut: Tensor
    flip: Tensor
    epoch: int
    index: int
    batches: int
    pad: int
    digest: int
    label_sets: Sets | None = None

    @classmethod
    def of(cls, batch: Batch, device: Device, non_blocking: bool = False) -> "Tensors":
        """A batch on a device. Where `x` is there already it stays, leased for as long as it is there."""
        values = {field.name: getattr(batch, field.name) for field in fields(cls) if field.name != "x"}
        # Columns are in pageable memory, which is read before the call returns: the copy need not be waited for.
        columns = {
            name: value.to(device, torch.int64 if value.dtype == "uint32" else None, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Array)
        }
        return cls(**values | columns, x=batch.x.to(device, non_blocking=non_blocking))

    @property
    def targets(self) -> Targets:
        """Labels and weights alone."""
        return Targets(self.label_a, self.label_b, self.lam, self.label_sets)

    def __len__(self) -> int:
        return len(self.label_a)


def _beside(values: Any, logits: Tensor) -> Tensor:
    """On the device of the logits, without waiting for them: but from pinned memory, which is read later, and towards the processor."""
    pinned = isinstance(values, Tensor) and values.is_pinned()
    there: Tensor = values.to(logits.device, non_blocking=logits.device.type != "cpu" and not pinned)
    return there


class MixedLoss(nn.Module):
    """Any loss, over two labels an image: `λ·L(ŷ, label_a) + (1 - λ)·L(ŷ, label_b)` for each image, then the loss's own reduction.

    `loss` is a module with the attribute `reduction`, such as `nn.CrossEntropyLoss(label_smoothing=0.1)`, or a function that takes the keyword
    `reduction`, such as `functional.cross_entropy`; `options` are passed on to a function. It must give one value an image when its reduction is
    "none". It is never changed, not even for a moment. Class weights weigh each image's loss; the mean is over images, as torch has it for
    probabilities.

    Called with logits and a `mixd.Batch`, `Tensors` or `Targets`, it mixes; with a tensor of labels or in `eval()` it is the loss itself, of the
    own label.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        *,
        reduction: Literal["mean", "sum", "none"] | None = None,
        **options: Any,
    ) -> None:
        """Wraps a loss; `reduction` is the loss's own by default, and "mean" of a function."""
        super().__init__()
        self.loss, self.options = loss, options
        if isinstance(loss, nn.Module):
            if not hasattr(loss, "reduction"):
                raise TypeError(
                    f"{type(loss).__name__} has no attribute `reduction`, so that it cannot be had for each image by itself "
                    "(give a loss of torch.nn, or a function that takes reduction=)"
                )
            if options:
                raise TypeError(f"{', '.join(options)}: options are for functions; a module of a loss has its own")
        if reduction not in (None, "mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}: it must be mean, sum or none")
        self._reduction = reduction

    @property
    def reduction(self) -> str:
        """mean, sum or none."""
        own = getattr(self.loss, "reduction", "mean") if isinstance(self.loss, nn.Module) else "mean"
        # A loss without one says so with None.
        return self._reduction or own or "none"

    def _as(self, reduction: str) -> Callable[..., Tensor]:
        """The loss with another reduction."""
        if isinstance(self.loss, nn.Module):
            # A shallow copy: parameters and buffers are the loss's own, its reduction is not.
            loss = copy.copy(self.loss)
            loss.reduction = reduction  # type: ignore[assignment]
            return loss
        return lambda logits, labels: self.loss(logits, labels, reduction=reduction, **self.options)

    def forward(self, logits: Tensor, target: "Tensor | Mixed") -> Tensor:
        """The loss of logits `[B, C]`: `[]`, or `[B]` where the reduction is none."""
        if isinstance(target, Tensor):
            return self._as(self.reduction)(logits, target)
        if getattr(target, "label_sets", None) is not None:
            raise ValueError(
                "these images have several labels, and a mixture of two losses knows one an image (use mixd.torch.BCEMixedLoss)"
            )
        label_a = _beside(target.label_a, logits)
        if not self.training:
            return self._as(self.reduction)(logits, label_a)
        label_b, lam = _beside(target.label_b, logits), _beside(target.lam, logits)
        each = self._as("none")
        own, partner = each(logits, label_a), each(logits, label_b)
        if own.shape != lam.shape:
            raise ValueError(
                f"the loss has shape {tuple(own.shape)} where it should have one value an image, {tuple(lam.shape)} (it must sum or average "
                "over everything but the batch)"
            )
        # As precise as the losses are: λ itself is float32.
        lam = lam.to(own.dtype)
        mixed = lam * own + (1 - lam) * partner
        return mixed.mean() if self.reduction == "mean" else mixed.sum() if self.reduction == "sum" else mixed

    def extra_repr(self) -> str:
        """Shows the reduction."""
        return f"reduction={self.reduction}"


class BCEMixedLoss(nn.Module):
    """Binary cross-entropy of each class against soft targets, as timm trains its A1 to A3 recipes with.

    `-(t·log σ(z) + (1 - t)·log(1 - σ(z)))` with `t = (1 - ε)(λ·e_a + (1 - λ)·e_b) + ε / classes`, or, where images have several labels,
    `t = λ·m_a + (1 - λ)·m_b` with multi-hot rows m. With a `target_threshold`, t becomes 1 above it and 0 elsewhere, which no mixture of two losses
    gives. The mean is over images and classes; `sum_classes` sums over the classes first.

    Called with logits `[B, C]` and a `mixd.Batch`, `Tensors` or `Targets`, int64 labels `[B]`, or soft targets `[B, C]`, which are taken as they are. In
    `eval()` a batch stands for its own labels.
    """

    def __init__(
        self,
        smoothing: float = 0.0,
        target_threshold: float | None = None,
        *,
        sum_classes: bool = False,
        reduction: Literal["mean", "sum", "none"] = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        """Takes timm's options under timm's names; `pos_weight` is torch's."""
        super().__init__()
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing is {smoothing}: it must be in [0, 1)")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}: it must be mean, sum or none")
        self.smoothing, self.target_threshold, self.sum_classes, self.reduction = smoothing, target_threshold, sum_classes, reduction
        self.pos_weight: Tensor | None
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, target: "Tensor | Mixed") -> Tensor:
        """The loss: `[]`; with reduction none `[B, C]`, or `[B]` where classes are summed."""
        soft = self._soft(target, logits).to(logits.dtype)
        if self.target_threshold is not None:
            soft = soft.gt(self.target_threshold).to(logits.dtype)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=self.pos_weight, reduction="none")
        if self.sum_classes:
            loss = loss.sum(-1)
        return loss.mean() if self.reduction == "mean" else loss.sum() if self.reduction == "sum" else loss

    def _soft(self, target: "Tensor | Mixed", logits: Tensor) -> Tensor:
        if isinstance(target, Tensor) and target.is_floating_point():
            return target
        own = _beside(target if isinstance(target, Tensor) else target.label_a, logits)
        sets: Sets | None = getattr(target, "label_sets", None)
        if isinstance(target, Tensor) or not self.training:
            targets = Targets(own, own, torch.ones(len(own), device=own.device), sets)
        else:
            targets = Targets(own, _beside(target.label_b, logits), _beside(target.lam, logits), sets)
        return targets.soft(logits.shape[-1], self.smoothing)

    def extra_repr(self) -> str:
        """Shows the options."""
        return f"smoothing={self.smoothing}, target_threshold={self.target_threshold}, reduction={self.reduction}"
