"""From ImageFolder, DataLoader and torchvision's transforms to mixd: the same loop over either, and what differs.

python from_dataloader.py imagenette2-160 --loader torch
python from_dataloader.py imagenette2-160 --loader mixd
"""

import argparse
import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

import mixd
import mixd.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision import datasets, transforms
from torchvision.transforms import v2

Loader = Iterable[tuple[torch.Tensor, torch.Tensor]]


def with_torch(data: Path, size: int) -> tuple[Loader, Loader]:
    """Before: worker processes decode every image in every epoch; each batch is mixed as a whole, by mixup or CutMix."""
    normalize = transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    augment = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
    center = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), transforms.ToTensor(), normalize]
    images = datasets.ImageFolder(str(data / "train"), transforms.Compose(augment))
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=len(images.classes)), v2.CutMix(alpha=1.0, num_classes=len(images.classes))])
    train = DataLoader(images, 64, shuffle=True, num_workers=2, collate_fn=lambda rows: mix(*default_collate(rows)))
    valid = DataLoader(datasets.ImageFolder(str(data / "val"), transforms.Compose(center)), 128, num_workers=2)
    return train, valid


def with_mixd(data: Path, size: int, stack: contextlib.ExitStack) -> tuple[Loader, Loader]:
    """After: each image is decoded once; the daemon crops, flips, normalises, and mixes each image by mixup or CutMix."""
    server = stack.enter_context(mixd.serve(data=data))
    # lam="per-batch" and pairing="roll" mix each batch as a whole, as torchvision does.
    train = server.feed("train", batch_size=64, recipe="torchvision-v1", size=size, mixup=0.2, cutmix=1.0)
    valid = server.feed("val", batch_size=128, recipe="torchvision-v1", size=size)
    return mixd.torch.DataLoader(train, targets="soft"), mixd.torch.DataLoader(valid)


def main() -> None:
    """Runs the loop, which does not change."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--loader", choices=("torch", "mixd"), required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--size", type=int, default=176)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    with contextlib.ExitStack() as stack:
        if options.loader == "torch":
            train, valid = with_torch(options.data, options.size)
        else:
            train, valid = with_mixd(options.data, options.size, stack)
        for epoch in range(options.epochs):
            start, images, total = time.monotonic(), 0, 0.0
            for x, y in train:
                loss = criterion(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                images, total = images + len(x), total + len(x) * loss.item()
            rate = images / (time.monotonic() - start)
            with torch.no_grad():
                hits = torch.cat([model(x).argmax(1) == y for x, y in valid])
            text = f"epoch {epoch}: {images} images, loss {total / images:.3f}, {rate:,.0f} images/s"
            print(f"{text}; accuracy {hits.float().mean():.3f} on {len(hits)}", flush=True)


if __name__ == "__main__":
    main()
