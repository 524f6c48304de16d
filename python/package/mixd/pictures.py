"""Batches as pictures, drawn by matplotlib, which is imported when it is needed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["caption", "draw", "to_pixels"]


def to_pixels(x: Tensor, mean: Sequence[float], std: Sequence[float], layout: str) -> Tensor:
    """Undoes the normalization of a batch: `[B, H, W, 3]`, values in [0, 1], or bytes where it has these."""
    x = x.detach().cpu() if layout == "nhwc" else x.detach().cpu().permute(0, 2, 3, 1)
    return x if x.dtype == torch.uint8 else (x.float() * torch.tensor(std) + torch.tensor(mean)).clamp(0, 1)


def caption(target: "int | list[float]", classes: Sequence[str], smoothing: float = 0.0) -> str:
    """Names a label, or the classes of a row of probabilities with their shares, such as 70 % French horn + 30 % tench, in a line each."""
    if isinstance(target, int):
        return classes[target] if target >= 0 else "padding"
    shares = [(share - smoothing / len(classes)) / (1 - smoothing) for share in target]
    shown = sorted(((share, name) for share, name in zip(shares, classes, strict=True) if share >= 0.005), reverse=True)
    return shown[0][1] if len(shown) == 1 else " +\n".join(f"{100 * share:.0f} % {name}" for share, name in shown)


def draw(
    images: Tensor,
    captions: Sequence[str],
    predicted: Sequence[str] | None = None,
    nrows: int | None = None,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
) -> None:
    """Draws images in a grid, under captions and what was predicted: green where both are the same, else red."""
    from matplotlib import pyplot

    ncols = ncols or math.ceil(len(images) / nrows if nrows else math.sqrt(len(images)))
    nrows = nrows or math.ceil(len(images) / ncols)
    _, axes = pyplot.subplots(nrows, ncols, figsize=figsize or (3 * ncols, 3 * nrows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for at, (axis, image, text) in enumerate(zip(axes.flat, images, captions, strict=False)):
        axis.imshow(image.numpy())
        if predicted is None:
            axis.set_title(text)
        else:
            axis.set_title(f"{text}\n{predicted[at]}", color="green" if predicted[at] == text else "red")
