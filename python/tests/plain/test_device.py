"""Batches on a CUDA device: what DLPack says of them, on a driver that runs on the processor (tests/cuda_on_cpu)."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Daemon, Script, environment


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the driver's libraries."""
    home = tmp_path_factory.mktemp("cuda_on_cpu")
    built = subprocess.run([ROOT / "tests" / "cuda_on_cpu" / "build.sh", home], check=True, capture_output=True, text=True)
    return Path(built.stdout.strip())


@pytest.fixture
def device_daemon(tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon that has the device, and trainers after it."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("CUDA_ON_CPU_DELAY_US", "200")
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.kill()


READ = """
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
get = ctypes.pythonapi.PyCapsule_GetPointer
get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64))]

def read(array, stream=1):
    capsule = array.__dlpack__(stream=stream)
    tensor = Tensor.from_address(get(capsule, b"dltensor"))
    memory = ctypes.create_string_buffer(array.nbytes)
    assert driver.cuMemcpyDtoH_v2(memory, ctypes.c_uint64(tensor.data), ctypes.c_size_t(array.nbytes)) == 0
    place = [tensor.kind, tensor.ordinal, tensor.code, tensor.bits]
    return place, list(tensor.shape[:tensor.ndim]), memory.raw, capsule
"""


def test_images_on_the_device_are_those_in_memory(device_daemon: Daemon, script: Callable[..., Script]) -> None:
    """To the bit, by way of the capsule's address; the lists are in main memory."""
    trainer = script(
        READ
        + """
options = dict(batch_size=8, size=32, dtype="bf16", seed=3)
device, memory = server.feed(device="cuda:0", **options), server.feed(**options)
same, seen = 0, []
for _ in range(6):
    on_device, in_memory = device.next_batch(), memory.next_batch()
    place, shape, bytes, capsule = read(on_device.x)
    buffer = (ctypes.c_char * in_memory.x.nbytes).from_address(in_memory.x.data_ptr)
    same += bytes == buffer.raw and on_device.lam.tolist() == in_memory.lam.tolist()
    seen.append((place, shape, tuple(on_device.x.__dlpack_device__())))
    del capsule
say(same, all(one == seen[0] for one in seen), seen[0], repr(on_device.x), device.spec["device"])
""",
        device_daemon,
    )
    same, alike, seen, text, device = trainer.heard()
    assert (same, alike) == (6, True)
    # CUDA, device 0, bfloat16 of 16 bits.
    assert seen == [[2, 0, 4, 16], [8, 3, 32, 32], [2, 0]]
    assert text == "<mixd.Array bfloat16 [8, 3, 32, 32] on cuda:0>"
    assert device == "cuda:0"


def test_what_needs_main_memory_is_refused_by_name(device_daemon: Daemon, script: Callable[..., Script]) -> None:
    """numpy, buffers, copies, ambiguous streams; and holding more batches than there are slots."""
    trainer = script(
        """
feed = server.feed(device="cuda", batch_size=8, size=32, slots=2)
batch = feed.next_batch()
def refused(what):
    try:
        what()
    except Exception as error:
        say(type(error).__name__, str(error))
    else:
        say("not refused", "")
refused(lambda: batch.x.numpy())
refused(lambda: memoryview(batch.x))
refused(lambda: batch.x.__dlpack__(stream=0))
refused(lambda: batch.x.__dlpack__(copy=True))
refused(lambda: batch.x.__dlpack__(dl_device=(1, 0)))
held = feed.next_batch()
refused(feed.next_batch)
refused(lambda: server.feed(device="cuda:7"))
refused(lambda: server.feed(device="cuda", digest=True))
del batch, held
say("on", feed.next_batch().index)
""",
        device_daemon,
    )
    expected = [
        ("BufferError", "on cuda:0"),
        ("BufferError", "on cuda:0"),
        ("BufferError", "stream 0"),
        ("BufferError", "clone"),
        ("BufferError", "cuda:0"),
        ("MixdError", "cannot be kept"),
        ("MixdError", "cuda:7"),
        ("SpecError", "digest"),
    ]
    for kind, text in expected:
        said = trainer.heard()
        assert said[0] == kind and text in said[1], said
    assert trainer.heard() == ["on", 2]


@pytest.mark.parametrize("named", ["stream.value", "2", "-1"])
def test_a_tensor_that_is_gone_keeps_its_slot_until_its_stream_is_done(
    device_daemon: Daemon, script: Callable[..., Script], named: str
) -> None:
    """Work that reads a batch is queued on a stream of somebody else's, which is named, or may be any; the batch is dropped at once."""
    trainer = script(
        READ
        + f"name = lambda: {named}"
        + """
stream = ctypes.c_void_p()
options = dict(batch_size=8, size=64, seed=4, slots=2)
device, memory = server.feed(device="cuda", **options), server.feed(**options)
context = ctypes.c_void_p()
assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and driver.cuCtxSetCurrent(context) == 0
assert driver.cuStreamCreate(ctypes.byref(stream), 1) == 0
copies, expected = [], []
for _ in range(12):
    in_memory, on_device = memory.next_batch(), device.next_batch()
    expected.append(bytes((ctypes.c_char * in_memory.x.nbytes).from_address(in_memory.x.data_ptr)))
    capsule = on_device.x.__dlpack__(stream=name())
    address = Tensor.from_address(get(capsule, b"dltensor")).data
    copy = ctypes.create_string_buffer(on_device.x.nbytes)
    for _ in range(60):
        assert driver.cuMemcpyDtoHAsync_v2(copy, ctypes.c_uint64(address), ctypes.c_size_t(len(copy)), stream) == 0
    copies.append(copy)
    del on_device, capsule
device.close()
assert driver.cuStreamSynchronize(stream) == 0
say([copy.raw == other for copy, other in zip(copies, expected)])
""",
        device_daemon,
    )
    assert trainer.heard() == [[True] * 12]


def test_a_daemon_of_ones_own_finds_what_torch_brings(tmp_path: Path) -> None:
    """NVRTC's folder goes into its library path."""
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libnvrtc.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    code = "from mixd.launch import library_path; print(library_path())"
    variables = environment(PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH="/own")
    printed = subprocess.run([sys.executable, "-c", code], env=variables, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == f"/own{os.pathsep}{library.parent}"
