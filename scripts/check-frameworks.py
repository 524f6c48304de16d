#!/usr/bin/env python3
"""Runs torchvision's reference training script over the loaders that `replace_loader` gives, alone and with two ranks.

    scripts/check-frameworks.py REFERENCE DATA

REFERENCE is references/classification of a checkout of pytorch/vision. A copy of it is changed in one line, which replaces its loaders, and where it
demands CUDA. DATA is an image folder whose validation images come out even over two ranks. The script trains, two ranks resume it, and its checkpoint
is validated with torch's loaders and with mixd's: accuracies differ by one image at most (JPEG decoders may differ), and the reference itself finds
no sample missing. Exits with 1 where a run fails or that does not hold. Takes two minutes on 2 cores.
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = "--model resnet18 --device cpu --workers 0 --batch-size 10 --lr 0.02 --train-crop-size 32 --val-resize-size 36 --val-crop-size 32"
LOADERS = ("data_loader", "data_loader_test")
REPLACE = f"    {', '.join(LOADERS)} = map(__import__('mixd.torch').torch.replace_loader, ({', '.join(LOADERS)}))\n"
LEAVE = "torch.distributed.barrier(); torch.distributed.destroy_process_group()\n"
CPU = {
    "train.py": {
        "device_ids=[args.gpu]": "",
        # It saves its arguments beside the weights.
        "weights_only=True": "weights_only=False",
        # Without these gloo's threads may abort the process at its end (pytorch/pytorch#179291).
        "    main(args)\n": "    main(args)\n    if args.distributed:\n        " + LEAVE,
    },
    "utils.py": {"torch.cuda.set_device(args.gpu)": "pass", '"nccl"': '"gloo"', 'device="cuda"': 'device="cpu"'},
}
# Options of each training run: the reference's own mixup and CutMix, and torchvision's v2 transforms.
RECIPES = {
    "v1": "--mixup-alpha 0.2 --cutmix-alpha 1 --auto-augment ta_wide --random-erase 0.1 --label-smoothing 0.1",
    "v2": "--use-v2 --mixup-alpha 0.2 --cutmix-alpha 1 --auto-augment ra --interpolation bicubic",
}


def copy(reference: Path, to: Path, replaced: bool) -> Path:
    """Copies the script, changed."""
    to.mkdir()
    for path in reference.glob("*.py"):
        text = path.read_text()
        changes = dict(CPU.get(path.name, {}))
        if replaced and path.name == "train.py":
            changes['    print("Creating model")\n'] = REPLACE + '    print("Creating model")\n'
        for old, new in changes.items():
            if old not in text:
                sys.exit(f"{path} has no {old!r}: it is another version than this script knows")
            text = text.replace(old, new)
        (to / path.name).write_text(text)
    return to / "train.py"


def run(script: Path, *options: object, ranks: int = 1) -> tuple[float, float]:
    """Runs a copy; gives the last accuracies that it prints, of the best guess and of the best five, in percent."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(script), *MODEL.split(), *map(str, options)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or "It looks like the dataset has" in done.stderr:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    best, five = re.findall(r"^Test: .*Acc@1 ([\d.]+) Acc@5 ([\d.]+)", done.stdout, re.MULTILINE)[-1]
    print(f"{script.parent.name}, {ranks} rank(s), {' '.join(map(str, options))}: Acc@1 {best}, Acc@5 {five}", flush=True)
    return float(best), float(five)


def main() -> None:
    """Runs all."""
    reference, images = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    worst = 100.01 / len(list(images.glob("val/*/*")))
    with tempfile.TemporaryDirectory() as folder:
        torchs, ours = (copy(reference, Path(folder, name), name == "mixd") for name in ("torch", "mixd"))
        for name, recipe in RECIPES.items():
            out = Path(folder, name)
            options = ("--data-path", images, "--output-dir", out, *recipe.split())
            run(ours, *options, "--epochs", 2)
            resumed = ("--resume", out / "checkpoint.pth")
            trained = run(ours, *options, *resumed, "--epochs", 3, ranks=2)
            tests = [run(script, *options, *resumed, "--test-only", ranks=ranks) for script, ranks in ((torchs, 1), (ours, 1), (ours, 2))]
            # What two ranks found when they had trained is what two ranks find now.
            off = [abs(one - expected) for found in tests for one, expected in zip(found, tests[0], strict=True)]
            if max(off) > worst or trained != tests[2]:
                sys.exit(f"{name}: accuracies after training {trained}, and validated {tests}")


if __name__ == "__main__":
    main()
