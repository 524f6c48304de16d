#!/usr/bin/env python3
"""Makes `cnn.safetensors` anew: the network of docs/spec/batches.md in double precision, from a state of integers.

Needs PyTorch and safetensors. With a folder as argument whose `cnn.safetensors` has a state of its own, compares this code with it.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

HERE = Path(__file__).parent
CHANNELS = [3, 16, 32, 64, 32, 64, 128, 256, 512]
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.47, 0.48, 0.45], [0.29, 0.28, 0.30]))


def shapes():
    out = {"head.weight": (10, 512), "head.bias": (10,)}
    for i in range(8):
        out[f"features.{i}.conv.weight"] = (CHANNELS[i + 1], CHANNELS[i], 3, 3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            out[f"features.{i}.bn.{name}"] = (CHANNELS[i + 1],)
    return out


def state():
    """Every value is exact in f32: an 11-bit hash of its place, scaled by a power of two (docs/spec/golden.md)."""
    out = {}
    for nth, (name, shape) in enumerate(sorted(shapes().items())):
        x = np.arange(math.prod(shape), dtype=np.uint32)
        x = x * np.uint32(0x9E3779B1) + np.uint32((nth + 5) * 0x85EBCA77 & 0xFFFFFFFF)
        x ^= x >> np.uint32(15)
        x = x * np.uint32(0x2C1B3C6D)
        x ^= x >> np.uint32(12)
        x = x * np.uint32(0x297A2D39)
        x ^= x >> np.uint32(15)
        v = ((x >> np.uint32(21)).astype(np.int64) - 1024) / 1024
        if name.endswith("conv.weight"):
            v /= {3: 2, 16: 4, 32: 8, 64: 8, 128: 16, 256: 16}[shape[1]]
        elif name.startswith("head"):
            v /= 32
        elif name.endswith("bn.weight"):
            v = 1 + v / 4
        elif name.endswith("running_var"):
            v = 1 + v / 2
        else:
            v /= 4
        out[name] = torch.tensor(v.reshape(shape))
    return out


def forward(p, x, train):
    for i in range(8):
        x = functional.conv2d(x, p[f"features.{i}.conv.weight"], stride=1 if i == 0 else 2, padding=1).relu()
        weight, bias, mean, var = (p[f"features.{i}.bn.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
        x = functional.batch_norm(x, mean, var, weight, bias, train, 0.1, 1e-5)
    return x.mean((2, 3)) @ p["head.weight"].T + p["head.bias"]


def mixed(x, lam, shuffle):
    x = ((x.float() / 255 - MEAN) / STD).double()
    lam = lam.double().view(-1, 1, 1, 1)
    return x * lam + x[shuffle] * (1 - lam)


def loss(z, y, y1, lam, eps=0.1):
    log = torch.log_softmax(z, 1)

    def each(labels):
        return -(1 - eps) * log.gather(1, labels[:, None])[:, 0] - eps / z.shape[1] * log.sum(1)

    lam = lam.double()
    return (lam * each(y) + (1 - lam) * each(y1)).mean()


def is_trained(name):
    return "running" not in name


def goldens(fresh, x, pixels, labels, given):
    """Every output, for the inputs in `given`."""

    def start():
        return {name: value.clone().requires_grad_(is_trained(name)) for name, value in fresh.items()}

    y, lam, shuffle, out = given["y"], given["lam"], given["shuffle"], {}
    with torch.no_grad():
        p, plain = start(), mixed(x, torch.ones(len(x)), torch.arange(len(x)))
        out["eval_logits"], out["train_logits"] = forward(p, plain, False), forward(p, plain, True)
        out |= {f"forward_stats.{name}": value.clone() for name, value in p.items() if not is_trained(name)}
    p = start()
    out["step.logits"] = forward(p, mixed(x, lam, shuffle), True)
    out["step.loss"] = loss(out["step.logits"], y, y[shuffle], lam).view(1)
    out["step.loss"].backward()
    out |= {f"step.grad_norm.{name}": p[name].grad.norm().view(1) for name in p if is_trained(name)}
    after = {name: value - 0.4 * value.grad if is_trained(name) else value for name, value in p.items()}
    p, losses = start(), []
    for rows, lam, shuffle in zip(given["traj.rows"], given["traj.lam"], given["traj.shuffle"]):
        y = labels[rows]
        value = loss(forward(p, mixed(pixels[rows], lam, shuffle), True), y, y[shuffle], lam)
        losses.append(value.item())
        names = [name for name in p if is_trained(name)]
        with torch.no_grad():
            for name, gradient in zip(names, torch.autograd.grad(value, [p[name] for name in names])):
                p[name] -= 0.002 * gradient
    out["traj.loss"] = torch.tensor(losses, dtype=torch.float64)
    return {name: value.detach() for name, value in out.items()}, {name: value.detach() for name, value in after.items()}


def compare(folder):
    golden, pixels = load_file(folder / "cnn.safetensors"), load_file(folder / "pixels.safetensors")
    fresh = {name[6:]: value.double() for name, value in golden.items() if name.startswith("state.")}
    out, after = goldens(fresh, golden["x_u8"], pixels["pixels"], pixels["labels"], golden)
    out |= {f"step.after.{name}": value for name, value in after.items()}
    for name in sorted(out.keys() & golden.keys()):
        print(f"{name}: off by {(out[name] - golden[name]).abs().max():.2g}")


def main():
    if len(sys.argv) > 1:
        return compare(Path(sys.argv[1]))
    pixels = load_file(HERE / "pixels.safetensors")
    images = torch.tensor([1, 4, 0, 3])
    given = {
        "images": images,
        "y": pixels["labels"][images],
        "lam": torch.tensor([0.90625, 0.59375, 1.0, 0.71875]),
        "shuffle": torch.tensor([1, 2, 0, 3]),
        "traj.rows": torch.tensor(
            [[0, 1, 2, 3, 4, 1, 4, 0], [4, 3, 2, 1, 0, 2, 3, 1], [1, 0, 4, 2, 3, 0, 4, 3], [2, 4, 1, 0, 3, 4, 1, 2], [3, 2, 0, 4, 1, 3, 0, 2]]
        ),
        "traj.lam": torch.tensor([[0.5 + (7 * i + 13 * t) % 33 / 64 for i in range(8)] for t in range(5)]),
        "traj.shuffle": torch.tensor([[(3 * i + t) % 8 for i in range(8)] for t in range(5)]),
    }
    out, after = goldens(state(), pixels["pixels"][images], pixels["pixels"], pixels["labels"], given)
    out = {name: value if "norm" in name or "loss" in name else value.float() for name, value in out.items()}
    for name, value in after.items():
        if value.numel() <= 512:
            out[f"step.after.{name}"] = value.float()
        else:
            index = (torch.arange(256) * 7919 + len(name)) % value.numel()
            out[f"step.sample_index.{name}"], out[f"step.sample_after.{name}"] = index, value.reshape(-1)[index].float()
    save_file({name: value.contiguous() for name, value in (given | out).items()}, HERE / "cnn.safetensors")


main()
