"""The lesson in PyTorch: a small convolutional network, mixup, label smoothing, on batches that mixd decodes once and mixes.

python train.py imagenette2-160.tgz            # one epoch at a learning rate of 0.05
"""

import argparse
import time

import mixd
import mixd.torch
import torch
from torch import nn
from torch.nn import functional

CHANNELS = [3, 16, 32, 64, 32, 64, 128, 256, 512]


def block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A convolution, and what comes after it."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, a=0.1)
    return nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm2d(outputs))


def network(classes: int) -> nn.Module:
    """Eight blocks, the mean over the image, and a linear layer."""
    blocks = [block(CHANNELS[at], CHANNELS[at + 1], stride=2 if at else 1) for at in range(8)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def main() -> None:
    """Trains, validates after each epoch, and prints a line for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with mixd.serve(data=options.data) as server:
        train = server.feed("train", batch_size=options.batch_size, mixup=0.4, seed=options.seed)
        valid = server.feed("val", batch_size=2 * options.batch_size)
        model = network(len(train.classes)).to(device)
        criterion = mixd.torch.MixedLoss(nn.CrossEntropyLoss(label_smoothing=0.1))
        optimizer = torch.optim.SGD(model.parameters(), options.lr)
        for epoch in range(options.epochs):
            start, sums = time.monotonic(), torch.zeros(3, dtype=torch.float64)
            model.train()
            for batch in train.epoch(epoch):
                logits = model(batch.x.to(device))
                loss = criterion(logits, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                right = (logits.argmax(1) == batch.label_a.to(device)).sum()
                sums += torch.tensor([len(batch) * loss.item(), right.item(), len(batch)])
            train_loss, train_acc = (sums[:2] / sums[2]).tolist()
            model.eval()
            sums.zero_()
            with torch.no_grad():
                for batch in valid.epoch(epoch):
                    logits, labels = model(batch.x.to(device)), batch.label_a.to(device)
                    right = (logits.argmax(1) == labels).sum()
                    sums += torch.tensor([functional.cross_entropy(logits, labels, reduction="sum").item(), right.item(), len(batch)])
            valid_loss, valid_acc = (sums[:2] / sums[2]).tolist()
            print(
                f"epoch {epoch}: train loss {train_loss:.3f}, accuracy {train_acc:.3f}; valid loss {valid_loss:.3f}, accuracy {valid_acc:.3f}; "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
