"""The trainer in Python of `mixd bench --python`: a loop that touches each batch as torch tensors, and counts.

It takes the options, and speaks the lines of JSON, of the trainer in Rust that it is set beside.
"""

import argparse
import json
import sys
import time

import torch

from ._native import Spec
from .feed import Feed


def say(report: object) -> None:
    """Tells `mixd bench`."""
    print(json.dumps(report), flush=True)


class Trainer:
    """Reads batches, and keeps a sum of what it read so that nothing is left out."""

    def __init__(self, options: argparse.Namespace, feed: Feed) -> None:
        self.options, self.feed, self.sum = options, feed, 0.0

    def step(self) -> int:
        """Reads the header and an element of every image of the next batch, or all of it, and works on it as a trainer would."""
        done = time.monotonic_ns() + 1000 * self.options.step_us
        batch = self.feed.next_batch()
        x, lam = batch.x.torch(), batch.lam.torch()
        touched = x if self.options.touch == "all" else x[:, 0, 0, 0]
        self.sum += batch.epoch + batch.index + lam.sum().item() + touched.sum(dtype=torch.float32).item()
        while time.monotonic_ns() < done:
            pass
        return len(batch)

    def round(self) -> dict[str, object]:
        """Counts once."""
        images, start, cpu = 0, time.monotonic(), time.process_time()
        while True:
            images += self.step()
            seconds = time.monotonic() - start
            if images >= self.options.images if self.options.images else seconds >= self.options.seconds:
                break
        cpu_seconds = time.process_time() - cpu
        return {"images": images, "seconds": seconds, "cpu_seconds": cpu_seconds, "handoff_us": [], "checksum": int(self.sum != 0)}


def main() -> None:
    """Warms up, then counts a round for every line on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--touch", required=True)
    for name in ("--warmup", "--images", "--step-us"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--seconds", "--reconnect"):
        parser.add_argument(name, type=float, required=True)
    parser.add_argument("--feed", type=json.loads, required=True, help="options of the feed, as JSON")
    options = parser.parse_args()
    # What torch does here is small: more threads would only take the processors from the daemon.
    torch.set_num_threads(1)
    start = time.monotonic_ns()
    spec = Spec(json.dumps(options.feed), "{}", None)
    feed = Feed(options.socket, spec, options.reconnect)
    attach_ns = time.monotonic_ns() - start
    trainer, first_batch_ns = Trainer(options, feed), 0
    for nth in range(options.warmup):
        trainer.step()
        first_batch_ns = first_batch_ns if nth else time.monotonic_ns()
    say({"warm": {"attach_ns": attach_ns, "first_batch_ns": first_batch_ns}})
    for _ in sys.stdin:
        # More than can have been made while nobody read.
        for _ in range(feed.spec["slots"] + 16):
            trainer.step()
        say("counting")
        say({"round": trainer.round()})


if __name__ == "__main__":
    main()
