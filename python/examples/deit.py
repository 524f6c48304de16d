"""A training script in the manner of DeiT and timm, which mixes in its loop, with mixd in the place of its loaders by one line each.

python deit.py imagenette2-160           # torch's DataLoader
python deit.py imagenette2-160 --mixd    # the same, the loaders replaced
"""

import argparse
import time
from pathlib import Path
from typing import Any

import mixd.torch
import torch
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets


def loaders(data: Path, size: int, batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Transforms of timm's: RandAugment and erasing with noise; validation from the centre."""
    train = create_transform(
        size, is_training=True, color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25, re_mode="pixel"
    )  # fmt: skip
    valid = create_transform(size, interpolation="bicubic", crop_pct=0.875)
    return (
        DataLoader(datasets.ImageFolder(str(data / "train"), train), batch_size, shuffle=True, num_workers=2, drop_last=True),
        DataLoader(datasets.ImageFolder(str(data / "val"), valid), batch_size, num_workers=2),
    )


def main() -> None:
    """Trains and validates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--mixd", action="store_true")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    train, valid = loaders(options.data, options.size, options.batch_size)
    if options.mixd:
        train, valid = mixd.torch.replace_loader(train), mixd.torch.replace_loader(valid)
    classes = len(train.dataset.classes)  # type: ignore[attr-defined]
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=classes)
    patches = [nn.Conv2d(3, 48, 16, stride=16), nn.Flatten(2)]
    model = nn.Sequential(*patches, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.GELU(), nn.Linear(192, classes))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    criterion = SoftTargetCrossEntropy()
    for epoch in range(options.epochs):
        start, total = time.monotonic(), 0.0
        for samples, labels in train:
            # In the loop, as DeiT has it; it writes into the batch, which is this process's own to write.
            images, targets = mixup(samples, labels)
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        with torch.no_grad():
            hits = torch.cat([model(images).argmax(1) == labels for images, labels in valid])
        seconds = time.monotonic() - start
        print(
            f"epoch {epoch}: loss {total / len(train):.3f}, accuracy {hits.float().mean():.3f} on {len(hits)}; {seconds:.1f} s", flush=True
        )


if __name__ == "__main__":
    main()
