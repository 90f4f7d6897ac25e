"""Builds csrc/cuda for the CPU with the simulator, where it is present."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The folder that contains the package `cudasim`.
FOLDER = Path(os.environ.get("SDPT_CUDASIM", ROOT.parent / "shared"))


def missing() -> str | None:
    """Why nothing can be simulated here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on the PATH"
    if not (FOLDER / "cudasim" / "__init__.py").exists():
        return f"no simulator in {FOLDER}; set SDPT_CUDASIM to the folder that contains cudasim"
    return None


needs_simulator = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def load() -> ModuleType:
    """The module `cudasim`."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module("cudasim")


def build(sources: Path = ROOT / "csrc", architecture: str = "sm_90a") -> Path:
    """The library of every operator in `sources`/cuda, registered for CPU tensors.

    The device that it finds is of the architecture too.
    """
    kernels = sources / "cuda"
    files = [sources / "register.cpp", *sorted(kernels.glob("*.cpp")), *sorted(kernels.glob("*.cu"))]
    library = load().build(
        list(map(str, files)),
        include_dirs=[str(sources)],
        defines={"TORCH_TARGET_VERSION": "0x020a000000000000", "SDPT_EXT_DEVICE_KEY": "CPU"},
        arch=architecture,
        cxx_flags=["-std=c++17"],
    )
    return Path(library)
