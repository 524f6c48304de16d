"""Data-parallel training: every rank gets its part of each epoch, from one daemon on each machine, without a word about ranks.

torchrun --nproc-per-node 2 ddp.py imagenette2-160.tgz --epochs 2 --save run.pt
torchrun --nproc-per-node 2 ddp.py imagenette2-160.tgz --epochs 2 --save run.pt --resume
"""

import argparse
import json
import os
from pathlib import Path

import mixd
import mixd.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Trains; each rank writes what it read and what its gradients were to `--journal`, if that is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--save", type=Path, help="write model, optimizer and the feed's place here after every batch")
    parser.add_argument("--stop-after", type=int, help="stop after so many batches, as a crash would")
    parser.add_argument("--resume", action="store_true", help="go on where --save stands")
    parser.add_argument("--journal", type=Path, help="a folder for a file of JSON lines a rank")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, device = dist.get_rank(), torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    log = (options.journal / f"rank-{rank}.jsonl").open("a") if options.journal else None
    torch.manual_seed(0)
    with mixd.serve(data=options.data) as server:
        train = server.feed("train", batch_size=options.batch_size, mixup=0.4, size=64)
        layers = [nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(train.classes))]
        model = DistributedDataParallel(nn.Sequential(*layers).to(device))
        criterion = mixd.torch.MixedLoss(nn.CrossEntropyLoss(label_smoothing=0.1))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        if options.resume:
            state = torch.load(options.save, map_location=device)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            train.load_state_dict(state["feed"])
        done = 0
        for epoch in range(train.place.epoch, options.epochs):
            for batch in train.epoch(epoch):
                loss = criterion(model(batch.x.to(device)), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if log:
                    gradient = model.module[-1].weight.grad
                    line = {"epoch": epoch, "index": batch.index, "pad": batch.pad, "sample_id": batch.sample_id.tolist()}
                    log.write(json.dumps({**line, "gradient": gradient.flatten().tolist(), "daemon": server.pid}) + "\n")
                if options.save and rank == 0:
                    # One rank's place is that of all.
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "feed": train.state_dict()}
                    torch.save(state, options.save.with_suffix(".new"))
                    options.save.with_suffix(".new").rename(options.save)
                done += 1
                if done == options.stop_after:
                    break
            if done == options.stop_after:
                break
            if rank == 0:
                print(f"epoch {epoch}: loss {loss.item():.3f}, {len(train)} batches for each of {dist.get_world_size()} ranks", flush=True)
    if log:
        log.close()
    # Else gloo's threads may abort the process at its end (pytorch/pytorch#179291).
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
