"""Lightning takes a feed as it is: it is an iterable with a length, and its batches move to a device.

python with_lightning.py imagenette2-160.tgz
"""

import sys
from typing import Any

import lightning
import mixd
import mixd.torch
import torch
from torch import nn


class Classifier(lightning.LightningModule):
    """A small network with the mixed loss."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
        self.criterion = mixd.torch.MixedLoss(nn.CrossEntropyLoss(label_smoothing=0.1))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """The loss of a batch."""
        loss: torch.Tensor = self.criterion(self.model(batch.x), batch)
        self.log("train_loss", loss, on_epoch=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Right answers."""
        logits = self.model(batch.x)
        self.log("valid_loss", self.criterion(logits, batch), batch_size=len(batch))
        self.log("valid_acc", (logits.argmax(1) == batch.label_a).float().mean(), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.05)


def main() -> None:
    """Trains two epochs."""
    with mixd.serve(data=sys.argv[1]) as server:
        train = server.feed("train", batch_size=32)
        # Lightning does not validate where it is given none.
        valid = server.feed("val") if server.samples["val"] else None
        trainer = lightning.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(Classifier(len(train.classes)), train_dataloaders=train, val_dataloaders=valid)
        metrics = {name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()}
        print(f"{trainer.global_step} steps: {metrics}", flush=True)


if __name__ == "__main__":
    main()
