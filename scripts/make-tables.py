#!/usr/bin/env python3
"""Makes tests/golden/tables anew: one small set of images as tables of every kind that mixd reads.

Needs pyarrow, datasets and Pillow. rows.json is the oracle: for each split the images' bytes (hexadecimal) and the names of their classes.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ["apple", "birch", "cedar"]
ROWS = {"train": 12, "test": 6}


def image(split: str, row: int) -> bytes:
    """A picture of 3x2 pixels that differs from all others, but for two that are the same."""
    shade = (len(split), 0) if (split, row) == ("train", 1) else (len(split), row)
    picture = Image.new("RGB", (3, 2))
    picture.putdata([((37 * at + 11 * shade[1]) % 256, (53 * at + shade[0]) % 256, 7 * shade[1]) for at in range(6)])
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def rows(split: str) -> list[tuple[bytes, int]]:
    count = ROWS[split]
    return [(image(split, row), row * len(CLASSES) // count) for row in range(count)]


def hub(split: str) -> datasets.Dataset:
    """As a data set on the hub is made."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    images = [{"bytes": data, "path": f"{row}.png"} for row, (data, _) in enumerate(rows(split))]
    return datasets.Dataset.from_dict({"image": images, "label": [label for _, label in rows(split)]}, features=features)


def table(labels: str = "int64", images: str = "struct", nullable: bool = True) -> pa.Table:
    data = [data for data, _ in rows("train")]
    numbers = [label for _, label in rows("train")]
    structure = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    if images == "struct":
        column = pa.array([{"bytes": data, "path": None} for data in data], structure)
    else:
        column = pa.array(data, pa.large_binary() if images == "large" else pa.binary())
    names = pa.array([CLASSES[label] for label in numbers]) if labels == "text" else pa.array(numbers, getattr(pa, labels)())
    schema = pa.schema([pa.field("image", column.type, nullable), pa.field("label", names.type, nullable)])
    boxes = pa.array([[row, row + 1] for row in range(len(data))], pa.list_(pa.int32()))
    schema = schema.insert(0, pa.field("boxes", boxes.type))
    return pa.table([boxes, column, names], schema)


def unlabelled(whole: pa.Table) -> pa.Table:
    """Rows without a label among the others."""
    none = whole.slice(3, 3).set_column(2, "label", pa.array([None] * 3, whole.schema.field("label").type))
    if none.column("label").type == pa.int64():
        none = none.set_column(2, "label", pa.array([-1, None, -7]))
    return pa.concat_tables([whole.slice(0, 5), none, whole.slice(5)])


def variants(folder: Path) -> None:
    """Each writes the rows of the training split in a way of its own."""
    bare = {"write_statistics": False}
    none, pages = {"compression": "none"}, {"write_batch_size": 4, "data_page_size": 1, **bare}
    write = {
        "plain-pages": (table(), {"use_dictionary": False, **none, **pages}),
        "plain-groups": (table("int32"), {**none, **bare, "use_dictionary": False, "row_group_size": 7}),
        "plain-required": (table("int32", "binary", False), {**none, **bare, "use_dictionary": False}),
        "plain-v2": (table("text"), {**none, **bare, "use_dictionary": False, "data_page_version": "2.0"}),
        "dictionary-v2": (table("text", "large"), {**none, "data_page_version": "2.0"}),
        "dictionary-small": (table(), {"dictionary_pagesize_limit": 200, **none, **pages}),
        "snappy": (table("text"), {"compression": "snappy", "use_dictionary": False, **pages}),
        "snappy-dictionary": (table(), {"compression": "snappy", "row_group_size": 7}),
        "zstd-v2": (table(), {"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0"}),
        "zstd-required": (table("int64", "binary", False), {"compression": "zstd", **bare}),
        "gzip": (table(), {"compression": "gzip", "use_dictionary": False, **bare}),
        "brotli": (table("int32"), {"compression": "brotli", **bare}),
        "lz4": (table(), {"compression": "lz4", "use_dictionary": False, **bare}),
        "unlabelled": (unlabelled(table()), {"compression": "none", **bare}),
        "unlabelled-text": (unlabelled(table("text")), {"compression": "zstd", **bare}),
    }
    for name, (content, options) in write.items():
        pq.write_table(content, folder / f"{name}.parquet", store_schema=False, **options)


def arrow(folder: Path) -> None:
    """The same as Arrow: as a stream of batches, and in the file format."""
    with pa.OSFile(str(folder / "arrow-stream.arrow"), "wb") as out, pa.ipc.new_stream(out, table("uint8").schema) as writer:
        writer.write_table(table("uint8"), max_chunksize=5)
    content = unlabelled(table("text", "large"))
    with pa.OSFile(str(folder / "arrow-file.arrow"), "wb") as out, pa.ipc.new_file(out, content.schema) as writer:
        writer.write_table(content)


def refused(folder: Path) -> None:
    """Tables that cannot be used, and words of why."""
    whole = table()
    image, label = whole.column("image").to_pylist(), whole.column("label").to_pylist()
    by_path = pa.array([{"bytes": None, "path": "a.png"}, *image[1:]], whole.schema.field("image").type)
    delta = {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}
    write = {
        "by-path": (whole.set_column(1, "image", by_path), {"compression": "none"}, "no bytes of an image in row 0"),
        "no-image": (whole.set_column(1, "image", pa.array([None, *image[1:]], by_path.type)), {}, "no bytes of an image in row 0"),
        "unlabelled": (whole.set_column(2, "label", pa.array([-1, None] * 6)), {}, "no labelled row for training"),
        "no-class": (whole.set_column(2, "label", pa.array([*label[:-1], 1 << 20])), {}, "the label 1048576 in row 11"),
        "no-images": (whole.select(["boxes", "label"]), {}, "no column of images among boxes (other), label (integers)"),
        "two-images": (whole.append_column("mask", whole.column("image")), {}, "the columns image, mask of images"),
        "no-labels": (whole.select(["boxes", "image"]), {}, "no column of labels"),
        "two-labels": (whole.append_column("class", whole.column("label")), {}, "the columns label, class of labels"),
        "delta": (table("int64", "binary"), delta, "encoding DELTA_LENGTH_BYTE_ARRAY"),
    }
    for name, (content, options, _) in write.items():
        pq.write_table(content, folder / f"{name}.parquet", store_schema=False, write_statistics=False, **{"compression": "gzip", **options})
    reasons = {name: words for name, (_, _, words) in write.items()}
    for name, options in {"arrow-by-path": {}, "arrow-compressed": {"compression": "zstd"}}.items():
        content = whole if options else write["by-path"][0]
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as out:
            with pa.ipc.new_stream(out, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
                writer.write_table(content)
        reasons[name] = "compressed record batches" if options else "no bytes of an image in row 0"
    (folder / "refused.json").write_text(json.dumps(reasons, indent=0) + "\n")


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/tables")
    shutil.rmtree(out, ignore_errors=True)
    (out / "hub/data").mkdir(parents=True)
    (out / "variants").mkdir()
    (out / "refused").mkdir()
    for split, count in ROWS.items():
        whole, shards = hub(split), 2 if split == "train" else 1
        for shard in range(shards):
            part = whole.select(range(shard * count // shards, (shard + 1) * count // shards))
            part.to_parquet(out / f"hub/data/{split}-{shard:05}-of-{shards:05}.parquet")
    datasets.DatasetDict({split: hub(split) for split in ROWS}).save_to_disk(out / "saved", num_shards={"train": 2, "test": 1})
    variants(out / "variants")
    arrow(out / "variants")
    refused(out / "refused")
    oracle = {split: [[data.hex(), CLASSES[label]] for data, label in rows(split)] for split in ROWS}
    (out / "rows.json").write_text(json.dumps(oracle, indent=0) + "\n")


if __name__ == "__main__":
    main()
