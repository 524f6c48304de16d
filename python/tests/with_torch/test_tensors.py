"""Batches as torch tensors: where they lie, and what becomes of those that are written to."""

import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable

import mixd
import mixd.torch
import numpy
import pytest
import torch

from ..conftest import Daemon, Script, mapping_of

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8}


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_a_tensor_lies_in_the_mapping(daemon: Daemon, name: str, dtype: torch.dtype) -> None:
    batch = daemon.connect().feed("train", batch_size=8, size=(20, 30), dtype=name).next_batch()
    for tensor in (batch.x.torch(), torch.utils.dlpack.from_dlpack(batch.x), batch.x.to("cpu"), batch.to("cpu").x):
        assert (tensor.dtype, tuple(tensor.shape), tensor.is_contiguous()) == (dtype, (8, 3, 20, 30), True)
        line = mapping_of(tensor.data_ptr())
        assert tensor.data_ptr() == batch.x.data_ptr and "/memfd:mixd-ring" in line and " r--s " in line
    assert daemon.connect().feed("train", dtype=dtype, size=16).spec["dtype"] == name


def test_torch_and_numpy_see_the_same(daemon: Daemon) -> None:
    for dtype in ("f32", "f16", "u8"):
        batch = daemon.connect().feed("train", batch_size=8, size=32, dtype=dtype).next_batch()
        assert (batch.x.torch().numpy() == batch.x.numpy()).all()
        assert torch.equal(torch.as_tensor(batch.label_a), batch.label_a.torch())
    labels = batch.label_a.torch()
    assert (labels == batch.label_a).all() and (batch.label_a == labels).all() and not (labels + 1 == batch.label_a).any()  # type: ignore[attr-defined]
    assert (batch.label_a == labels.numpy()).all() and not (batch.label_a != labels.tolist()).any()
    f32, bf16 = (daemon.connect().feed("train", batch_size=8, size=32, dtype=dtype).next_batch() for dtype in ("f32", "bf16"))
    assert torch.equal(f32.x.to(torch.bfloat16), bf16.x.torch())


def test_bfloat16_is_numpys_where_ml_dtypes_is_there(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    x = daemon.connect().feed("train", batch_size=8, size=32, dtype="bf16").next_batch().x

    class Types:
        bfloat16 = numpy.uint16

    monkeypatch.setitem(sys.modules, "ml_dtypes", Types)
    array = x.numpy()
    assert array.ctypes.data == x.data_ptr
    assert (array == x.torch().view(torch.uint16).numpy()).all()


def test_what_is_written_in_place_is_ones_own_and_gone_with_the_batch(daemon: Daemon) -> None:
    server = daemon.connect()
    writes, reads = (server.feed("train", batch_size=32, size=64, share="a", start=(0, 0), digest=True) for _ in range(2))
    # More than the ring has slots, so that each is written to and comes again.
    for _ in range(12):
        mine, other = writes.next_batch(), reads.next_batch()
        assert mine.is_intact() and other.is_intact()
        x, before = mine.x.torch(), mine.x.torch().clone()
        x.sub_(1.0).mul_(2.0)
        x[3, 1] = 7.0
        assert x[0, 0, 0, 0] == (before[0, 0, 0, 0] - 1) * 2 and (x[3, 1] == 7).all()
        assert not mine.is_intact() and other.is_intact()
        assert torch.equal(other.x.torch(), before) and torch.equal(mine.x.torch(), x)
        # numpy's view of the same memory shows it, too, and cannot be written to itself.
        assert (mine.x.numpy() == x.numpy()).all() and not mine.x.numpy().flags.writeable
        del x, mine, other


def test_many_threads_may_write_at_once(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=64, size=128)
    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        for _ in range(8):
            x = feed.next_batch().x.torch()
            expected = x + 1
            x.add_(1)
            assert torch.equal(x, expected)
            del x
    finally:
        torch.set_num_threads(threads)


def test_what_a_kernel_call_writes_is_an_error(daemon: Daemon) -> None:
    x = daemon.connect().feed("train", batch_size=4, size=32).next_batch().x.torch()
    with open("/dev/zero", "rb", buffering=0) as zeros, pytest.raises(OSError, match="Bad address"):
        zeros.readinto(memoryview(x.numpy()))  # type: ignore[arg-type]


@pytest.mark.parametrize("faulthandler", ["", "import faulthandler; faulthandler.enable()"])
@pytest.mark.parametrize("order", ["{setup}\n{touch}", "{touch}\n{setup}\n{touch}"])
def test_other_faults_end_the_process_as_before(script: Callable[..., Script], daemon: Daemon, faulthandler: str, order: str) -> None:
    touch = "x = feed.next_batch().x.torch(); x.add_(1); del x"
    code = f"feed = server.feed('train', size=32)\n{order.format(setup=faulthandler, touch=touch)}\nsay('wrote')\nimport ctypes; ctypes.string_at(8)"
    trainer = script(code, daemon)
    assert trainer.heard() == ["wrote"]
    code_, error = trainer.finish()
    assert code_ == -signal.SIGSEGV
    assert ("Fatal Python error: Segmentation fault" in error) == bool(faulthandler)


def test_what_is_written_while_a_batch_becomes_a_copy_is_not_lost(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=64, size=128, digest=True, slots=2)
    written: queue.Queue[tuple[torch.Tensor, torch.Tensor] | None] = queue.Queue()

    def write() -> None:
        while pair := written.get():
            x, expected = pair
            for row in range(len(x)):
                x[row].add_(1)
            results.append(torch.equal(x, expected))

    results: list[bool] = []
    writer = threading.Thread(target=write)
    writer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            batch = feed.next_batch()
            x = batch.x.torch()
            written.put((x, x + 1))
            # Held by the writer alone, which is at it while the next batches come.
            del batch, x
    written.put(None)
    writer.join()
    assert len(results) == 60 and all(results)


def test_a_batch_moves_as_a_whole(daemon: Daemon) -> None:
    batch = daemon.connect().feed("train", batch_size=8, size=32, crop="random_resized_crop", flip=True, cutmix=1.0).next_batch()
    tensors = batch.to("cpu")
    assert isinstance(tensors, mixd.torch.Tensors) and len(tensors) == 8
    assert (tensors.epoch, tensors.index, tensors.batches) == (batch.epoch, batch.index, batch.batches)
    for name in ("label_a", "label_b", "lam", "partner", "sample_id", "partner_id", "crop", "cut", "flip"):
        assert getattr(tensors, name).tolist() == getattr(batch, name).tolist(), name
    assert (tensors.sample_id.dtype, tensors.flip.dtype) == (torch.int64, torch.uint8)
    assert (tuple(tensors.crop.shape), tuple(tensors.cut.shape)) == ((8, 4), (8, 4)) and tensors.crop.any() and tensors.cut.any()
    meta = tensors.to("meta")
    assert meta.x.device.type == meta.label_a.device.type == "meta" and meta.index == batch.index
    # The partner's row is where the partner's sample is.
    assert torch.equal(tensors.sample_id[tensors.partner.long()], tensors.partner_id)


def test_a_tensor_keeps_its_batch(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=8, size=32, digest=True)
    views = [feed.next_batch().x.torch()[2:4].flatten(1)]
    expected = views[0].clone()
    with pytest.warns(UserWarning, match=r"held are epoch 0, batch 0 \(by 1 × tensor\)"):
        for _ in range(5):
            feed.next_batch()
    assert torch.equal(views[0], expected)
    # A copy is written to as well.
    views[0].add_(1)
    assert torch.equal(views[0], expected + 1)
    assert all(batch.is_intact() for batch in feed.epoch())
    assert feed.held() == ["epoch 0, batch 0 (by 1 × tensor)"]
    views.clear()
    assert feed.held() == []


@pytest.mark.filterwarnings("ignore:a batch was held")
def test_a_loader_with_forked_workers_runs_beside_a_feed(daemon: Daemon) -> None:
    feed = daemon.connect().feed("train", batch_size=16, size=32, digest=True)
    batch = feed.next_batch()
    numbers: torch.utils.data.DataLoader[int] = torch.utils.data.DataLoader(range(32), batch_size=4, num_workers=2)  # type: ignore[arg-type]
    for numbers_, mixed in zip(numbers, feed.epoch(0), strict=False):
        assert mixed.is_intact() and batch.is_intact() and len(numbers_) == 4
