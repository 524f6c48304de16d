"""A training script in the manner of torchvision's references, with mixd in the place of its loaders by one line each.

python imagenet.py imagenette2-160           # torch's DataLoader
python imagenet.py imagenette2-160 --mixd    # the same, the loaders replaced
"""

import argparse
import time
from pathlib import Path
from typing import Any

import mixd.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision import datasets, transforms
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def loaders(data: Path, size: int, batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """TrivialAugment, erasing, mixup or CutMix for each batch; validation from the centre."""
    bilinear = transforms.InterpolationMode.BILINEAR
    train = transforms.Compose([
        transforms.RandomResizedCrop(size, interpolation=bilinear, antialias=True),
        transforms.RandomHorizontalFlip(0.5),
        transforms.TrivialAugmentWide(interpolation=bilinear),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(MEAN, STD),
        transforms.RandomErasing(0.1),
    ])  # fmt: skip
    valid = transforms.Compose([
        transforms.Resize(round(size * 232 / 224), interpolation=bilinear, antialias=True),
        transforms.CenterCrop(size),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    images = datasets.ImageFolder(str(data / "train"), train)
    classes = len(images.classes)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)])

    def collate(rows: Any) -> Any:
        return mix(*default_collate(rows))

    return (
        DataLoader(images, batch_size, shuffle=True, num_workers=2, drop_last=True, collate_fn=collate),
        DataLoader(datasets.ImageFolder(str(data / "val"), valid), batch_size, num_workers=2),
    )


def main() -> None:
    """Trains and validates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--mixd", action="store_true")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=176)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    train, valid = loaders(options.data, options.size, options.batch_size)
    if options.mixd:
        train, valid = mixd.torch.replace_loader(train), mixd.torch.replace_loader(valid)
    layers = [nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32, len(train.dataset.classes)))  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(options.epochs):
        start, total = time.monotonic(), 0.0
        for images, targets in train:
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
