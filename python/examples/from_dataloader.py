"""From ImageFolder, DataLoader and torchvision's MixUp to mixd: the same loop over either, and what differs.

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

MEAN, STD = (0.47, 0.48, 0.45), (0.29, 0.28, 0.30)


def with_torch(data: Path) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """As it was: workers decode every image in every epoch, and one λ is drawn for a whole batch."""
    pixels = transforms.Compose([transforms.Resize((128, 128)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = datasets.ImageFolder(str(data / "train"), pixels)
    mixup = v2.MixUp(alpha=0.4, num_classes=len(images.classes))
    return DataLoader(images, 64, shuffle=True, num_workers=2, collate_fn=lambda rows: mixup(*default_collate(rows)))


def with_mixd(data: Path, stack: contextlib.ExitStack) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """As it is: decoded once, mixed in the daemon with a λ for each image; targets are the same soft ones."""
    server = stack.enter_context(mixd.serve(data=data))
    train = server.feed("train", batch_size=64, mixup=0.4, mean=MEAN, std=STD)
    return mixd.torch.DataLoader(train, targets="soft")


def main() -> None:
    """Runs the loop, which does not change."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--loader", choices=("torch", "mixd"), required=True)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    with contextlib.ExitStack() as stack:
        loader = with_torch(options.data) if options.loader == "torch" else with_mixd(options.data, stack)
        optimizer = None
        for epoch in range(options.epochs):
            start, images, total = time.monotonic(), 0, 0.0
            for x, y in loader:
                loss = criterion(model(x), y)
                # The lazy layer has its weights after the first batch.
                optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                images, total = images + len(x), total + len(x) * loss.item()
            rate = images / (time.monotonic() - start)
            print(f"epoch {epoch}: {images} images, loss {total / images:.3f}, {rate:,.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
