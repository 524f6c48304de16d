"""For PyTorch: losses of mixed batches, batches as tensors, and loaders that take the place of torch's own."""

from .loader import DataLoader, replace_loader
from .losses import BCEMixedLoss, MixedLoss, Targets, Tensors
from .transforms import from_torchvision

__all__ = ["BCEMixedLoss", "DataLoader", "MixedLoss", "Targets", "Tensors", "from_torchvision", "replace_loader"]
