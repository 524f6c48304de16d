"""DINO's multi-crop: two global views of 224 pixels and eight local ones of 96, from two feeds of one seed.

python dino.py imagenette2-160.tgz
"""

import sys
import time
from typing import Any

import mixd
import mixd.torch
import torch

SAMPLES = 16


def main() -> None:
    """Takes an epoch's views, as a trainer does: a list of ten tensors, one for each view."""
    with mixd.serve(data=sys.argv[1]) as server:
        # The same seed gives the same order of samples; views share no draw. Rows are counted in views: (sample, view).
        common: dict[str, Any] = {"seed": 1, "last": "drop"}
        views = mixd.torch.DataLoader(server.feed("train", recipe="dino", batch_size=2 * SAMPLES, **common))
        local = mixd.torch.DataLoader(server.feed("train", recipe="dino-local", batch_size=8 * SAMPLES, **common))
        start, samples = time.monotonic(), 0
        for (large, labels), (small, again) in zip(views, local, strict=True):
            assert torch.equal(labels[::2], again[::8])
            crops = [large[view::2] for view in range(2)] + [small[view::8] for view in range(8)]
            # loss = dino_loss(student(crops), teacher(crops[:2]))
            samples += len(crops[0])
        shapes = [tuple(crop.shape) for crop in (crops[0], crops[-1])]
        print(f"{samples} samples of {len(crops)} views {shapes}: {samples / (time.monotonic() - start):.0f} samples/s", flush=True)


if __name__ == "__main__":
    main()
