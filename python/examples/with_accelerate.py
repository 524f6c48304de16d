"""Accelerate needs nothing either: prepare model and optimizer, and move each batch yourself.

python with_accelerate.py imagenette2-160.tgz
"""

import sys

import mixd
import mixd.torch
import torch
from accelerate import Accelerator
from torch import nn


def main() -> None:
    """Trains two epochs."""
    accelerator = Accelerator()
    with mixd.serve(data=sys.argv[1]) as server:
        train = server.feed("train", batch_size=32)
        layers = [nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(train.classes))]
        model = nn.Sequential(*layers)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.05))
        criterion = mixd.torch.MixedLoss(nn.CrossEntropyLoss(label_smoothing=0.1))
        steps = 0
        for epoch in range(2):
            for batch in train.epoch(epoch):
                here = batch.to(accelerator.device)
                loss = criterion(model(here.x), here)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                steps += 1
        print(f"{steps} steps: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
