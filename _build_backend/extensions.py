"""Which extension modules to build here, and with which flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

def build_arguments() -> dict[str, Any]:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp") if path.name != "bindings.cpp")
    ops = CppExtension("sdpt_ext._C", sources, py_limited_api=True,
        extra_compile_args={"cxx": ["-O3", "-std=c++17", "-fopenmp-simd", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000", "-Wall"]})
    return {"ext_modules": [ops], "cmdclass": {"build_ext": BuildExtension}}
