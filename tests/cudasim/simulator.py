"""Builds csrc/cuda for the CPU with the simulator, where it is present."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
# The folder that contains the package `cudasim`.
FOLDER = Path(os.environ.get("SDPT_CUDASIM", ROOT.parent / "shared"))


def missing() -> str | None:
    """Why nothing can be simulated here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on the PATH"
    if not (FOLDER / "cudasim" / "__init__.py").exists():
        return f"no simulator in {FOLDER}; set SDPT_CUDASIM to the folder that contains cudasim"
    return None


def load() -> ModuleType:
    """The module `cudasim`."""
    sys.path.append(str(FOLDER))
    return importlib.import_module("cudasim")


def build(architecture: str, *flags: str) -> Path:
    """The library of every CUDA operator, registered for CPU tensors; `flags` go to nvcc."""
    kernels = SOURCES / "cuda"
    sources = [SOURCES / "register.cpp", *sorted(kernels.glob("*.cpp")), *sorted(kernels.glob("*.cu"))]
    return Path(
        load().build(
            list(map(str, sources)),
            include_dirs=[str(SOURCES)],
            defines={"TORCH_TARGET_VERSION": "0x020a000000000000", "SDPT_EXT_DEVICE_KEY": "CPU"},
            arch=architecture,
            cxx_flags=["-std=c++17"],
            nvcc_flags=flags,
        )
    )
