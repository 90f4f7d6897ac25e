"""The extension modules of this package and their flags."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import toolchain

if TYPE_CHECKING:
    from setuptools import Extension

ROOT = Path(__file__).resolve().parent.parent
# The oldest torch whose stable ABI the operators need; one binary then serves every newer torch.
TORCH_TARGET = f"0x{toolchain.OLDEST_TORCH[0]:02x}{toolchain.OLDEST_TORCH[1]:02x}000000000000"
# These compile nothing, and importing torch takes seconds.
METADATA_COMMANDS = {"dist_info", "egg_info", "sdist"}
CXX_FLAGS = ["-O3", "-std=c++17", "-fopenmp-simd", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]
# torch takes the conversions of 16-bit numbers away from CUDA code; the kernels need them.
_TAKEN_AWAY = ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
NVCC_FLAGS = ["-O3", "-std=c++17", "-DUSE_CUDA", *(f"-U__CUDA_NO_{name}__" for name in _TAKEN_AWAY)]


def build_arguments() -> dict[str, Any]:
    """Keyword arguments of `setuptools.setup` that a pure Python package would not have."""
    if METADATA_COMMANDS.intersection(sys.argv):
        return {}
    problem = toolchain.missing_tool()
    if problem is not None:
        print(f"sdpt_ext: installing WITHOUT compiled operators: {problem}. PyTorch paths will run.", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension

    cuda_sources: list[str] = []
    if toolchain.builds_cuda():
        cuda_sources = [*_sources("cuda", "cpp"), *_sources("cuda", "cu")]
        os.environ["TORCH_CUDA_ARCH_LIST"] = toolchain.cuda_architectures()
    return {
        "ext_modules": [_operators(cuda_sources), _host_module(bool(cuda_sources))],
        "cmdclass": {"build_ext": BuildExtension},
    }


def _operators(cuda_sources: list[str]) -> Extension:
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    target = f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"
    make = CUDAExtension if cuda_sources else CppExtension
    return make(
        "sdpt_ext._C",
        [*_sources("", "cpp"), *_sources("cpu", "cpp"), *cuda_sources],
        py_limited_api=True,
        extra_compile_args={"cxx": [*CXX_FLAGS, target], "nvcc": [*NVCC_FLAGS, target]},
    )


def _host_module(with_cuda: bool) -> Extension:
    import torch
    from setuptools import Extension
    from torch.utils.cpp_extension import include_paths

    facts = {
        "SDPT_EXT_TORCH_VERSION": torch.__version__,
        "SDPT_EXT_TORCH_TARGET": ".".join(map(str, toolchain.OLDEST_TORCH)),
        "SDPT_EXT_FLAGS": " ".join(CXX_FLAGS),
        "SDPT_EXT_CUDA_ARCHITECTURES": os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else "",
    }
    return Extension(
        "sdpt_ext._host",
        [*_sources("host", "cpp"), "csrc/cpu/instruction_set.cpp"],
        include_dirs=include_paths(),
        define_macros=[(name, f'"{value}"') for name, value in facts.items()],
        extra_compile_args=CXX_FLAGS,
        language="c++",
    )


def _sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*.{suffix}"))
