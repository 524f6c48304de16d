"""The kernels' source, compiled by the NVRTC that PyTorch brings: no device is needed for that."""

import ctypes
import importlib.util
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = (ROOT / "src" / "cuda" / "kernels.cu").read_bytes()


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    """NVRTC; what it loads itself is found once it is there."""
    package = importlib.util.find_spec("nvidia.cu13")
    assert package and package.submodule_search_locations
    folder = Path(next(iter(package.submodule_search_locations))) / "lib"
    ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so.*"))), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))


def compiled(nvrtc: ctypes.CDLL, architecture: str, element: str, pixels: int) -> tuple[int, str]:
    """NVRTC's answer, and what it says."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE, b"kernels.cu", 0, None, None) == 0
    options = [f"--gpu-architecture={architecture}", f"-DELEMENT={element}", f"-DPIXELS={pixels}"]
    options += ["--ptxas-options=-v"] if architecture.startswith("sm") else []
    answer = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
    assert nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetProgramLog(program, log) == 0
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return answer, log.value.decode()


@pytest.mark.parametrize("element", ["F32", "F16", "BF16", "U8"])
@pytest.mark.parametrize("pixels", [0, 1])
def test_kernels_compile_and_keep_all_in_registers(nvrtc: ctypes.CDLL, element: str, pixels: int) -> None:
    """For the oldest devices that CUDA 13 knows and for Hopper; there, nothing goes to local memory."""
    for architecture in ("compute_75", "compute_90"):
        answer, log = compiled(nvrtc, architecture, element, pixels)
        assert answer == 0, log
    answer, log = compiled(nvrtc, "sm_90", element, pixels)
    assert answer == 0, log
    assert log.count(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 3, log
