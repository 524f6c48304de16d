"""What a batch holds, where it lies, and how long it stays."""

import copy
import ctypes
import json
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import mixd
import numpy
import pytest

from ..conftest import SAMPLE_DATA, Daemon, environment, mapping_of, mixd_output


def test_the_package_brings_the_command_and_needs_neither_numpy_nor_torch() -> None:
    assert mixd_output("--version").split() == ["mixd", metadata.version("mixd")]
    code = "import mixd, sys; assert not {'numpy', 'torch'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_what_needs_numpy_or_torch_says_so_where_they_are_not() -> None:
    code = f"""
import sys
sys.modules["numpy"] = sys.modules["torch"] = None
import mixd
with mixd.serve(data={str(SAMPLE_DATA)!r}) as server:
    batch = server.feed("train", size=16).next_batch()
    assert 0 < batch.lam.tolist()[0] == memoryview(batch.lam)[0] <= 1
    for what, package in (lambda: batch.x.torch(), "torch"), (lambda: batch.lam[0], "numpy"), (lambda: batch.lam == 1, "numpy"):
        try: what()
        except ModuleNotFoundError as error: assert f"pip install {{package}}" in str(error), error
        else: raise AssertionError(package)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_the_fields_are_what_the_plan_says(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=24, seed=5, mixup=0.7)
    options = ("--data", SAMPLE_DATA, "--epoch", 1, "--batch-size", 24, "--seed", 5, "--alpha", 0.7, "--json")
    plans = [json.loads(line) for line in mixd_output("plan", *options).splitlines()]
    assert len(feed) == len(plans) == 9
    for batch, plan in zip(feed.epoch(1), plans, strict=True):
        assert (batch.epoch, batch.index, batch.batches, len(batch)) == (1, plan["index"], 9, plan["len"])
        for name in ("label_a", "label_b", "partner", "sample_id", "partner_id"):
            assert getattr(batch, name).tolist() == plan[name], name
        assert batch.lam.tolist() == pytest.approx(plan["lambda"], abs=1e-7)
        assert (batch.pad, batch.digest, batch.is_intact()) == (0, 0, True)
    assert [array.dtype for array in (batch.label_a, batch.lam, batch.partner, batch.sample_id)] == ["int64", "float32", "int32", "uint32"]


def replayed(tmp_path: Path, *options: object) -> dict[str, numpy.ndarray[Any, Any]]:
    """What `mixd replay` makes of batch 1 of epoch 2, by name."""
    out = tmp_path / "batch.safetensors"
    mixd_output("replay", "--data", SAMPLE_DATA, "--epoch", 2, "--batch", 1, "--batch-size", 8, "--size", "20x30", "--out", out, *options)
    content = out.read_bytes()
    length = int.from_bytes(content[:8], "little")
    types = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I64": "<i8", "I32": "<i4", "U64": "<u8", "U32": "<u4"}
    arrays = {}
    for name, tensor in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            arrays[name] = numpy.frombuffer(content[8 + length :][begin:end], types[tensor["dtype"]]).reshape(tensor["shape"])
    return arrays


def test_every_column_of_a_replay_is_a_field_of_the_batch(daemon: Daemon, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": "torchvision-v1", "mixup": 0.4, "cutmix": 1.0, "digest": True}
    batch = daemon.connect().feed("train", batch_size=8, size=(20, 30), start=(2, 1), **options).next_batch()
    arrays = replayed(tmp_path, "--recipe", "torchvision-v1", "--alpha", 0.4, "--cutmix", 1, "--digest")
    # "view" is of replays alone.
    scalars = {"epoch", "index", "batches", "digest", "pad"}
    columns = set(arrays) - scalars - {"view", "len"}
    assert {"x", "label_a", "lambda", "crop", "cut", "flip"} <= columns
    for name in columns:
        array = getattr(batch, "lam" if name == "lambda" else name).numpy()
        assert array.dtype == arrays[name].dtype and array.tolist() == arrays[name].tolist(), name
    assert all(getattr(batch, name) == arrays[name].item() for name in scalars)


@pytest.mark.parametrize(("dtype", "name"), [("f32", "float32"), ("f16", "float16"), ("u8", "uint8")])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_images_are_read_where_the_daemon_wrote_them(daemon: Daemon, tmp_path: Path, dtype: str, name: str, layout: Any) -> None:
    size: Any = numpy.array([20, 30])
    feed = daemon.connect().feed("train", batch_size=8, size=size, dtype=dtype, layout=layout, start=(2, 1))
    x = feed.next_batch().x
    array = x.numpy()
    assert (x.dtype, array.dtype.name, array.shape) == (name, name, x.shape)
    assert x.shape == ((8, 3, 20, 30) if layout == "nchw" else (8, 20, 30, 3))
    assert (array == replayed(tmp_path, "--dtype", dtype, "--layout", layout)["x"]).all()
    for view in (array, numpy.from_dlpack(x), numpy.asarray(x), numpy.asarray(memoryview(x))):
        assert view.ctypes.data == x.data_ptr
        assert not view.flags.writeable
    line = mapping_of(x.data_ptr)
    assert "/memfd:mixd-ring" in line and " r--s " in line


def test_bfloat16_is_named_where_numpy_cannot_have_it(daemon: Daemon) -> None:
    x = daemon.connect().feed("train", batch_size=4, dtype="bf16").next_batch().x
    with pytest.raises(TypeError, match=r"numpy has no bfloat16 \(use .torch\(\)"):
        x.numpy()
    with pytest.raises(BufferError, match="bfloat16 has no format"):
        memoryview(x)
    assert x.nbytes == 4 * 3 * 128 * 128 * 2


def test_writing_to_images_is_refused_and_a_copy_is_ones_own(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=8, digest=True)
    batch = feed.next_batch()
    array = batch.x.numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(TypeError, match="not writable"):
        (ctypes.c_char * 4).from_buffer(batch.x)
    copied = numpy.from_dlpack(batch.x, copy=True)
    copied[0] = 1
    assert batch.is_intact() and copied.ctypes.data != batch.x.data_ptr
    labels = batch.label_a.numpy()
    labels[0] = 9
    assert batch.label_a.tolist() != labels.tolist()


def test_dlpack_is_refused_for_what_it_is_not(daemon: Daemon) -> None:
    x = daemon.connect().feed("train", batch_size=4).next_batch().x
    assert x.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="on the CPU"):
        x.__dlpack__(dl_device=(2, 0))
    assert "dltensor_versioned" in repr(x.__dlpack__(max_version=(1, 0)))
    assert '"dltensor"' in repr(x.__dlpack__())


def test_images_stay_while_anything_refers_to_them(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("train", batch_size=8)
    array = feed.next_batch().x.numpy()
    expected = array.copy()
    for _ in range(3):
        feed.next_batch()
    # In one's own copy from here on, in the same place, whatever becomes of feed and daemon.
    server.close()
    assert (array == expected).all()
    with pytest.raises(RuntimeError, match="the feed was closed"):
        feed.next_batch()
    daemon.kill()
    assert (array == expected).all()


def test_what_is_held_for_long_is_named_and_becomes_a_copy(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=8, digest=True)
    batch = feed.next_batch()
    array, views = batch.x.numpy(), [memoryview(batch.x), numpy.from_dlpack(batch.x)]
    expected, address = array.copy(), array.ctypes.data
    del batch
    for _ in range(3):
        feed.next_batch()
    assert feed.held() == ["epoch 0, batch 0 (by 1 × tensor, 2 × numpy array or other buffer)"]
    with pytest.warns(UserWarning, match=r"held are epoch 0, batch 0 \(by 1 × tensor, 2 × numpy array or other buffer\) \(drop") as warned:
        assert feed.next_batch().index == 4
    # All of two epochs at once, each whole; it is said once.
    batches = list(feed.epoch(0)) + list(feed.epoch(1))
    assert [batch.index for batch in batches] == [*range(5, 25), *range(25)] and len(warned) == 1
    assert all(batch.is_intact() for batch in batches)
    assert (array == expected).all() and address == array.ctypes.data
    before = own_memory_kb()
    # With the last that refers to it each is gone.
    del array, views, batches
    assert feed.held() == [] and own_memory_kb() < before - 40 * 8 * 3 * 128 * 128 * 4 // 1024


def own_memory_kb() -> int:
    """Memory of this process that no other has."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1])


def test_lists_are_copies_and_hold_nothing(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=8)
    labels = [batch.label_a.numpy() for batch in feed]
    assert (len(labels), feed.held()) == (25, [])


def test_nothing_is_pickled(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=8)
    batch = feed.next_batch()
    for thing, remedy in (
        (batch, "open a feed in the other process"),
        (batch.x, r"pickle its \.numpy"),
        (feed._open, "open one in the other"),
    ):
        with pytest.raises(TypeError, match=remedy):
            pickle.dumps(thing)
        with pytest.raises(TypeError, match=remedy):
            copy.deepcopy(thing)


def test_latest_lends_one_batch_at_a_time(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=8, share="latest", delivery="latest")
    seen = []
    for batch in feed:
        seen.append(batch.index)
        last = batch
    assert seen and last is batch
    feed.next_batch()
    with pytest.raises(mixd.MixdError, match="given back when the next"):
        batch.x  # noqa: B018
    array = feed.next_batch().x.numpy()
    expected = array.copy()
    for _ in range(6):
        feed.next_batch()
    assert (array == expected).all()


def test_things_show_what_they_are(daemon: Daemon) -> None:
    server = daemon.connect()
    feed = server.feed("val", size=32)
    batch = feed.next_batch()
    assert repr(server) == f"<mixd.Server: pid {daemon.process.pid} on {daemon.socket}>"
    assert repr(feed) == "<mixd.Feed: val, 1 batches of 128, next is (1, 0)>"
    assert repr(batch) == "<mixd.Batch: epoch 0, batch 0 of 1, 50 images, f32>"
    assert repr(batch.x) == "<mixd.Array float32 [50, 3, 32, 32] in shared memory>"
    assert repr(batch.lam) == "<mixd.Array float32 [50]>"
    assert feed.classes[:2] == ["tench", "English springer"] and feed.class_ids[0] == "n01440764"
    assert (feed.samples, batch.label_a[3], len(batch.lam), batch.x[0, 0].shape) == (50, 0, 50, (32, 32))
    feed.close()
    assert repr(feed) == "<mixd.Feed, closed>"
