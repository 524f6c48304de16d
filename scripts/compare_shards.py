#!/usr/bin/env python3
"""`make compare-shards`: mixd on shards and Parquet beside its folder, and beside what reads these elsewhere; fresh processes, in rounds.

Everyone does the work of `make compare`'s first rows: images of train/ shuffled (by the contenders within a window where their format has it so), 128x128
bilinear with antialiasing, batches of 64, f32, normalised, mixed; two workers. A contender is `compare_shards.py NAME`.
"""

import argparse
import functools
import http.server
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from compare_loaders import BATCH, SIDE, WORKERS, mix_of
from measure import bench, folder, head, report, run

HOME = Path(".compare")
PACKAGES = HOME / "shards-packages"
# torch, numpy and Pillow are those of the environment that runs this.
REQUIREMENTS = ["webdataset==1.0.2", "litdata==0.2.76", "datasets==5.2.0", "datago==2026.10.1"]
# What these import beside, without their own torch.
NEEDED = ["braceexpand", "lightning-utilities", "boto3", "botocore", "jmespath", "s3transfer", "python-dateutil", "six", "pyarrow", "dill", "multiprocess",
          "xxhash", "fsspec", "huggingface_hub", "pandas", "pytz", "tzdata", "obstore", "tifffile"]
OURS = {
    "mixd, folder, decoding": ("folder", ["--cache", "off"]),
    "mixd, shards, decoding": ("shards", ["--cache", "off"]),
    "mixd, Parquet, decoding": ("parquet", ["--cache", "off"]),
    "mixd, folder, stored": ("folder", []),
    "mixd, shards, stored": ("shards", []),
    "mixd, Parquet, stored": ("parquet", []),
}


def pixels(image) -> "object":
    """A PIL image as a u8 tensor [3, SIDE, SIDE]."""
    import numpy
    import torch
    from PIL import Image

    return torch.from_numpy(numpy.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.BILINEAR)).copy()).permute(2, 0, 1)


def opened(file: bytes) -> "object":
    """The pixels of an encoded image."""
    from PIL import Image

    return pixels(Image.open(io.BytesIO(file)))


def webdataset(sets: Path) -> Iterator:
    """webdataset's own loader: a buffer of 1,000 samples."""
    import torch
    import webdataset as wds

    urls = sorted(map(str, (sets / "shards").glob("train-*.tar")))
    data = wds.WebDataset(urls, shardshuffle=100, workersplitter=wds.split_by_worker, empty_check=False)
    data = data.repeat().shuffle(1000).to_tuple("jpg", "cls").map_tuple(opened, int).batched(BATCH, partial=False)
    torch.set_num_threads(1)
    return iter(wds.WebLoader(data, batch_size=None, num_workers=WORKERS, prefetch_factor=4))


def datasets_(sets: Path) -> Iterator:
    """Hugging Face datasets over the Parquet files, read at random by torch's DataLoader."""
    import datasets
    import torch

    files = sorted(map(str, (sets / "parquet").glob("train-*.parquet")))
    data = datasets.load_dataset("parquet", data_files={"train": files}, split="train", cache_dir=str(sets / "cache"))
    data = data.with_transform(lambda rows: {"x": [pixels(image) for image in rows["image"]], "y": rows["label"]})
    torch.set_num_threads(1)
    sampler = torch.utils.data.RandomSampler(data, num_samples=len(data) * 1_000_000)
    collate = lambda rows: (torch.stack([row["x"] for row in rows]), torch.tensor([row["y"] for row in rows]))
    return iter(torch.utils.data.DataLoader(data, BATCH, sampler=sampler, num_workers=WORKERS, prefetch_factor=4, collate_fn=collate))


def litdata(sets: Path) -> Iterator:
    """LitData over its own chunks of the same files."""
    import litdata as ld
    import torch

    class Decoded(ld.StreamingDataset):
        def __getitem__(self, at):
            file, label = super().__getitem__(at)
            return opened(file), label

    torch.set_num_threads(1)
    data = Decoded(str(sets / "litdata"), shuffle=True, drop_last=True)
    while True:
        yield from ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, shuffle=True, prefetch_factor=4)


def datago(sets: Path) -> Iterator:
    """datago over the shards by a web server of its own on loopback, which is how it reads them; it resizes itself."""
    import torch
    from datago import DatagoClient

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(sets / "shards")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    count = len(list((sets / "shards").glob("train-*.tar")))
    config = {
        "source_type": "webdataset",
        "source_config": {
            "url": f"http://127.0.0.1:{server.server_port}/train-{{000000..{count - 1:06}}}.tar",
            "random_sampling": True,
            "concurrent_downloads": 2,
            "rank": 0,
            "world_size": 1,
        },
        "image_config": {
            "crop_and_resize": True,
            "default_image_size": SIDE,
            "downsampling_ratio": 8,
            "min_aspect_ratio": 1.0,
            "max_aspect_ratio": 1.0,
            "pre_encode_images": False,
        },
        "prefetch_buffer_size": 256,
        "samples_buffer_size": 256,
        "limit": 1_000_000_000,
    }
    while True:
        client = DatagoClient(json.dumps(config))
        images = []
        while (sample := client.get_sample()) is not None:
            images.append(pixels(sample.image.to_pil_image() if hasattr(sample.image, "to_pil_image") else sample.image))
            if len(images) == BATCH:
                yield torch.stack(images), torch.zeros(BATCH, dtype=torch.int64)
                images = []
        client.stop()


CONTENDERS: dict[str, Callable[[Path], Iterator]] = {
    "webdataset": webdataset, "Hugging Face datasets": datasets_, "LitData": litdata, "datago": datago,
}  # fmt: skip


def contend(name: str, sets: Path, seconds: float) -> None:
    """Prints what a contender delivers."""
    start, mix = time.monotonic(), mix_of()
    batches = (mix(*batch) for batch in CONTENDERS[name](sets))
    next(batches)[0].flatten()[0].item()
    first = time.monotonic() - start
    for _ in range(20):
        next(batches)
    cpu = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    begin, images = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        batch = next(batches)[0]
        batch.flatten()[0].item()
        images += len(batch)
    took = time.monotonic() - begin
    print(json.dumps({"images_per_s": images / took, "first_batch_s": first, "cpu_s": cpu()}), flush=True)
    os._exit(0)


def packages() -> None:
    """The contenders' packages, in a folder of their own."""
    stamp, wanted = PACKAGES / "requirements", "\n".join(REQUIREMENTS)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {', '.join(REQUIREMENTS)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", PACKAGES, *REQUIREMENTS, *NEEDED], check=True)
    stamp.write_text(wanted)


def prepared(mixd: Path, data: Path) -> Path:
    """The same images as a folder, as shards, as Parquet without compression and as LitData's chunks."""
    sets = HOME / f"sets-{data.name}"
    if (sets / "whole").exists():
        return sets
    import litdata as ld
    import pyarrow
    import pyarrow.parquet

    (sets / "parquet").mkdir(parents=True, exist_ok=True)
    if not (sets / "shards").exists():
        subprocess.run([mixd, "pack", "--data", data, "--out", sets / "shards", "--shard-size", "16M"], check=True)
    classes = sorted(path.name for path in (data / "train").iterdir())
    for split, name in (("train", "train"), ("val", "validation")):
        files = [(path, classes.index(path.parent.name)) for path in sorted((data / split).glob("*/*"))]
        feature = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}}}
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        schema = pyarrow.schema([("image", kind), ("label", pyarrow.int64())], {"huggingface": json.dumps(feature)})
        for nth, part in enumerate(files[at : at + 1000] for at in range(0, len(files), 1000)):
            rows = [{"image": {"bytes": path.read_bytes(), "path": path.name}, "label": label} for path, label in part]
            to = sets / "parquet" / f"{name}-{nth:05}-of-{-(-len(files) // 1000):05}.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), to, compression="none", row_group_size=100)
    files = [(str(path), classes.index(path.parent.name)) for path in sorted((data / "train").glob("*/*"))]
    ld.optimize(fn=lit_sample, inputs=files, output_dir=str(sets / "litdata"), chunk_bytes="16MB", num_workers=1)
    (sets / "whole").touch()
    return sets


def lit_sample(item: tuple[str, int]) -> tuple[bytes, int]:
    """A sample of LitData's chunks."""
    return Path(item[0]).read_bytes(), item[1]


def table(rounds: list[dict]) -> list[list[str]]:
    """Medians, and the ratio to mixd on the same images in each round."""
    rows = [["", "images/s", "first batch s", "mixd's shards are faster by"]]
    for name in rounds[0]:
        results = [of[name] for of in rounds]
        if errors := [result["error"] for result in results if "error" in result]:
            rows.append([name, errors[0].splitlines()[-1], "", ""])
            continue
        ours = "mixd, shards, stored" if name.endswith("stored") else "mixd, shards, decoding"
        ratios = [of[ours]["images_per_s"] / of[name]["images_per_s"] for of in rounds]
        times = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        median = lambda key: statistics.median(result[key] for result in results)
        rows.append([name, f"{median('images_per_s'):,.0f}", f"{median('first_batch_s'):.2f}", times])
    return rows


def main() -> None:
    """Rounds, then the table on standard output and in files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", choices=CONTENDERS)
    parser.add_argument("--mixd", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--out", type=Path, default=Path("benches/results"))
    options = parser.parse_args()
    if options.name:
        return contend(options.name, options.data, options.seconds)
    packages()
    sys.path.insert(0, str(PACKAGES))
    data, rounds = folder(options.data, HOME), []
    sets = prepared(options.mixd, data)
    places = {"folder": data, "shards": sets / "shards", "parquet": sets / "parquet"}
    for nth in range(options.rounds):
        print(f"round {nth + 1} of {options.rounds}", file=sys.stderr)
        results = {}
        for name in CONTENDERS:
            command = [sys.executable, __file__, name, "--data", sets, "--seconds", str(options.seconds)]
            results[name] = run(command, name, PYTHONPATH=str(PACKAGES))
        for name, (place, more) in OURS.items():
            figures = bench(options.mixd, places[place], options.seconds, more)
            results[name] = {"images_per_s": figures["images_per_s"], "first_batch_s": figures["first_batch_ms"] / 1000}
        rounds.append(results)
    command = f"make compare-shards DATA={options.data.name} ROUNDS={options.rounds} SECONDS={options.seconds:g}"
    report("shards", options.out, f"{head(command)}; {', '.join(REQUIREMENTS)}", table(rounds), rounds)


if __name__ == "__main__":
    main()
