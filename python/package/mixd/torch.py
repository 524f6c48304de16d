"""For PyTorch: the mixed loss, batches as tensors, and a loader of the shape of torch's own."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ._native import Array, Batch
from .errors import SpecError
from .feed import Feed

__all__ = ["DataLoader", "MixedLoss", "Targets", "Tensors"]

Device = torch.device | str | int
_T = TypeVar("_T", bound="_Movable")


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
        """The same on a device; what is there already stays where it is."""
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

    def soft(self, classes: int, smoothing: float = 0.0) -> Tensor:
        """One row of probabilities an image, `[B, classes]`, as precise as λ: float32.

        `(1 - ε)(λ·e_a + (1 - λ)·e_b) + ε / classes`, which cross-entropy without smoothing of its own takes.
        """
        targets = torch.full((len(self.lam), classes), smoothing / classes, dtype=self.lam.dtype, device=self.lam.device)
        weight = self.lam.unsqueeze(1) * (1 - smoothing)
        # Added, not stored: both labels may be the same.
        targets.scatter_add_(1, self.label_a.unsqueeze(1), weight)
        return targets.scatter_add_(1, self.label_b.unsqueeze(1), (1 - smoothing) - weight)

    def __len__(self) -> int:
        return len(self.label_a)


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
        return Targets(self.label_a, self.label_b, self.lam)

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


class DataLoader:
    """A feed in the shape of `torch.utils.data.DataLoader`: each `for x, y in loader` is an epoch.

    `x` lies in shared memory, or on `device`. `y` is, by `targets`: "object", a `Targets` (for `MixedLoss`); "soft", probabilities
    `[B, classes]` with the feed's smoothing (for `nn.CrossEntropyLoss`); "label", int64 `[B]`. By default, an object where the feed is mixed,
    labels where it is not.
    """

    def __init__(
        self,
        feed: Feed,
        targets: Literal["object", "soft", "label"] | None = None,
        device: Device = "cpu",
    ) -> None:
        """Reads `feed`."""
        if targets not in (None, "object", "soft", "label"):
            raise SpecError(f"targets is {targets!r}: it must be object, soft or label")
        self.feed, self.device = feed, device
        self.targets = targets or ("object" if feed.is_mixed else "label")
        self.batch_size = feed.batch_size
        self.classes = feed.classes

    def __len__(self) -> int:
        """Batches in each epoch."""
        return len(self.feed)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        # Nothing here holds a batch while the caller works on it.
        return map(self._pair, self.feed)

    def _pair(self, batch: Batch) -> tuple[Tensor, Any]:
        x = batch.x.to(self.device, non_blocking=True)
        label_a = batch.label_a.to(self.device, non_blocking=True)
        if self.targets == "label":
            return x, label_a
        targets = Targets(label_a, batch.label_b.to(self.device, non_blocking=True), batch.lam.to(self.device, non_blocking=True))
        return x, targets if self.targets == "object" else targets.soft(len(self.classes), self.feed.spec["smoothing"])

    def state_dict(self) -> dict[str, Any]:
        """The feed's."""
        return self.feed.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The feed's."""
        self.feed.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Makes this epoch the next one, as a DistributedSampler has it."""
        if self.feed.place != (epoch, 0):
            self.feed.seek(epoch)
