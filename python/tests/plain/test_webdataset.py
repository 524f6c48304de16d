"""mixd's shards beside webdataset itself: the same samples, fields and labels of many tars that a seeded generator makes."""

import io
import itertools
import json
import random
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from mixd.launch import program

from ..conftest import environment

wds = pytest.importorskip("webdataset", reason="it is pinned in requirements/plain.txt, and not for the tests with torch")

IMAGES = ["jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "pnm", "jpe", "jfif", "bmp", "gif", "tif", "tiff"]
FOLDERS = ["", "", "a/", "b.c/", "./", "d//", "é/x y/", "__m__/", "__m__/e/", "f/__m__/", "__x__y/"]
STEMS = ["{}", "k{}", "K{}", "__{}__", "{} x", "n01440764_{}_n01440764"]
FIELDS = [
    *("jpg", "jpg", "JPG", "png", "Png", "webp", "jpeg", "tiff", "image.jpg", "0.PNG", "mask.gif", ".jpg", "svg"),
    *("__bad__", "mask.npy", "x.cls", "meta.json", "", "url", "pt"),
]
LABELS = ["cls", "cls", "CLS", "cls.txt", "json", "json", "Json", "txt"]
NAMES = ["tench", "golf ball", "Église", "10"]
# Files that are no field of any sample.
OTHERS = ["README", "b.c/README", "__meta__", "____", "__info__.json", "a/b/"]
# What mixd does not see, while webdataset makes samples of their own of those that lie in folders.
HIDDEN = [".DS_Store", "._0.jpg", "a/._0.jpg", "b.c/.x"]


def label_text(random: random.Random, field: str, kind: str) -> str:
    """What a label's field holds: an integer in some way of writing, a name, or nothing of use."""
    number = random.randrange(-1, 12)
    if field.lower() != "json":
        no_number = "a photo" if field == "txt" else str(number)
        return random.choice([f"{number}", f" {number}\n", f"{number:03}", no_number]) if kind == "integers" else "a photo"
    value: object = number if kind == "integers" else random.choice(NAMES)
    if kind == "several":
        value = random.sample(NAMES, random.randrange(4)) if random.random() < 0.8 else value
    if kind == "integers" and random.random() < 0.2:
        value = float(number)
    extra = {"width": 3, "caption": "x" * random.randrange(600)}
    forms = [{"label": value}, {"cls": value}, {"label": None, "cls": value}, {"label": value, "cls": 5 if kind == "integers" else "x"}, {}]
    return json.dumps(extra | random.choice(forms), ensure_ascii=random.random() < 0.5)


def files(random: random.Random, kind: str) -> list[tuple[str, bytes]]:
    """The files of a shard, in its order. An image holds its own name, so that whoever reads one tells which file it was."""
    made: list[tuple[str, bytes]] = []
    keys = itertools.count()
    for _ in range(random.randrange(30, 60)):
        key = random.choice(FOLDERS) + random.choice(STEMS).format(next(keys) if random.random() < 0.9 else 0)
        labels = [field for field in LABELS if kind == "integers" or field in ("json", "Json", "txt")]
        fields = random.sample(FIELDS, random.choice([0, 1, 1, 1, 2, 3])) + random.sample(labels, random.choice([0, 1, 1, 1, 2]))
        random.shuffle(fields)
        # Two of one field in a sample are refused: a test of its own.
        unique = {field.lower(): field for field in fields}.values()
        sample = [
            (f"{key}.{field}", label_text(random, field, kind).encode() if field in LABELS else f"{key}.{field}".encode())
            for field in unique
        ]
        if any(key == re.sub(r"\.[^/]*$", "", name) for name, _ in made[-1:]):
            continue
        made += sample
        if random.random() < 0.3:
            name = random.choice(OTHERS + HIDDEN)
            if all(name != other for other, _ in made):
                made.insert(random.randrange(len(made) + 1), (name, b"{}"))
    return made


def write(path: Path, contents: list[tuple[str, bytes]], kind: int) -> None:
    """A tar of these files; a name that ends with a slash is a folder."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in contents:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = 0 if info.isdir() else len(content)
            tar.addfile(info, io.BytesIO(content))


def is_visible(name: str) -> bool:
    """Whether the last part of a name begins with no dot: mixd's one departure, as docs/datasets.md has it."""
    return not name.rsplit("/", 1)[-1].startswith(".")


def samples(shard: Path) -> list[dict[str, Any]]:
    """What webdataset reads from a shard, labels decoded."""
    pipeline = wds.DataPipeline(wds.SimpleShardList([str(shard)]), wds.tarfile_to_samples(select_files=is_visible))
    return list(pipeline.compose(wds.decode(only=["cls", "cls.txt", "json", "txt"])))


def image(sample: dict[str, Any]) -> str | None:
    """The image of a sample, which is its name: the first field that is called as images are, else the only one that ends so."""
    first = wds.filters.getfirst(sample, IMAGES, missing_is_error=False)
    ending = [field for field in sample if "." in field and field.rsplit(".", 1)[1] in IMAGES]
    if first is None and len(ending) == 1:
        first = sample[ending[0]]
    return first.decode() if first is not None else None


Label = int | str | tuple[str, ...]


def label(sample: dict[str, Any], key: str | None) -> Label | None:
    """The label of a sample, or all of a list, by the rules of docs/datasets.md#webdataset-shards."""
    written = wds.filters.getfirst(sample, ["cls", "cls.txt"], missing_is_error=False)
    if key is None and written is not None:
        return int(written)
    found = [sample.get("json", {}).get(name) for name in ([key] if key else ["label", "cls"])]
    found = [value for value in found if value is not None]
    if found and isinstance(found[0], list):
        return tuple(found[0])
    if found:
        return found[0] if isinstance(found[0], str) else int(found[0])
    if key is None and re.fullmatch(r"\s*-?\d+\s*", sample.get("txt", "")):
        return int(sample["txt"])
    return None


def expected(folder: Path, key: str | None) -> list[tuple[str, Label]]:
    """Name and label of each sample in a folder's shards."""
    listed = []
    for shard in sorted(folder.glob("*.tar")):
        for sample in samples(shard):
            name, value = image(sample), label(sample, key)
            if name is not None and value is not None and (isinstance(value, str | tuple) or value >= 0):
                assert name.startswith(sample["__key__"] + ".")
                listed.append((f"{shard.name}/{name}", value))
    return listed


def numbers(labels: list[Label]) -> list[int]:
    """The numbers that stand for labels: places among sorted names, or of sets of these in the order of their first samples."""
    if any(isinstance(label, tuple) for label in labels):
        sets = [frozenset(label if isinstance(label, tuple) else (label,)) for label in labels]
        return [list(dict.fromkeys(sets)).index(one) for one in sets]
    names = sorted({label for label in labels if isinstance(label, str)}, key=str.encode)
    return [names.index(label) if isinstance(label, str) else int(str(label)) for label in labels]


def plan(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `mixd plan` says of a folder's samples in their order."""
    command = [program(), "plan", f"--data={folder}", "--epoch=0", "--shuffle=false", "--mixup=0", "--batch-size=512", *options]
    cache = {"MIXD_CACHE_DIR": str(folder.parent / "cache")}
    return subprocess.run(command, env=environment(**cache), capture_output=True, text=True, timeout=60)


def listed(folder: Path, *options: str) -> list[tuple[str, int]]:
    """Name and label of each sample, as mixd has them."""
    text, lines = plan(folder, *options), plan(folder, *options, "--json")
    assert text.returncode == 0, text.stderr
    names = re.findall(r"^ +\d+  1\.0000 (.*?)  \+  0\.0000 ", text.stdout, re.MULTILINE)
    labels = [label for line in lines.stdout.splitlines() for label in json.loads(line)["label_a"]]
    return list(zip(names, labels, strict=True))


@pytest.fixture(scope="module", params=range(24))
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards, whose labels are integers, names, or lists of names."""
    draw = random.Random(request.param)
    kind = ["names", "integers", "several", "integers"][request.param % 4]
    folder = tmp_path_factory.mktemp(f"shards{request.param}") / "set"
    folder.mkdir()
    for nth in range(6):
        tar = draw.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        write(folder / f"train-{nth:06}.tar", files(draw, kind), tar)
    return folder


@pytest.mark.parametrize("key", [None, "label", "cls"])
def test_keys_fields_and_labels_are_webdatasets(shards: Path, key: str | None) -> None:
    wanted = expected(shards, key)
    assert len(wanted) > (0 if key else 20)
    found = listed(shards, *([f"--label-key={key}"] if key else []))
    assert found == list(zip([name for name, _ in wanted], numbers([label for _, label in wanted]), strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.cls", "a.jpg"],
        ["a.jpg", "a.cls", "a.JPG"],
        ["b.c/a.jpg", "b.c/a.cls", "b.c/a.x.y", "b.c/a.X.Y"],
        ["a.jpg", "a.cls", "a.__key__"],
        ["a.jpg", "a.cls", "a.__URL__"],
        ["a.jpg", "a.cls", "README", "a.cls"],
    ],
)
def test_what_webdataset_refuses_is_refused(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train-0.tar", [(name, b"1") for name in names], tarfile.GNU_FORMAT)
    with pytest.raises(ValueError, match="duplicate file name"):
        samples(tmp_path / "set" / "train-0.tar")
    refused = plan(tmp_path / "set")
    assert refused.returncode != 0 and "train-0.tar has " in refused.stderr and f"`{names[-1]}`" in refused.stderr, refused.stderr


def test_a_key_that_comes_again_is_another_sample(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    names = ["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls", "A.jpg", "A.cls", "c.jpg", "a.cls"]
    for shard in ["train-0.tar", "train-1.tar"]:
        write(tmp_path / "set" / shard, [(name, name.encode() if name.endswith("jpg") else b"3") for name in names], tarfile.GNU_FORMAT)
    found = listed(tmp_path / "set")
    assert found == expected(tmp_path / "set", None) and len(found) == 8
