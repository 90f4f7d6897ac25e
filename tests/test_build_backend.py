"""What the installer does about torch and compilers that are there, hidden or missing."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

BACKEND = Path(__file__).parent.parent / "_build_backend"
BUILD_ARGUMENTS = f"import sys; sys.path.insert(0, {str(BACKEND)!r}); import extensions; extensions.build_arguments()"


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_hidden_torch_of_the_outer_environment_is_found() -> None:
    # -S hides site-packages from this process, as an isolated build does.
    code = f"import sys; sys.path.insert(0, {str(BACKEND)!r}); import outer_torch; outer_torch.make_importable()"
    code += "; import importlib.util; print(importlib.util.find_spec('torch').origin)"
    found = run(sys.executable, "-S", "-c", code, PYTHONPATH="").stdout.strip()
    outer = run(sys.executable, "-c", "import torch; print(torch.__file__)").stdout.strip()
    assert found == outer


def test_without_torch_the_package_is_pure_python_and_one_line_says_so(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False, symlinks=True)
    python = tmp_path / "bin" / "python"
    result = run(str(python), "-c", BUILD_ARGUMENTS + "; print(extensions.build_arguments())", PYTHONPATH="")
    assert result.stdout.strip() == "{}"
    lines = set(result.stderr.strip().splitlines())
    assert len(lines) == 1
    assert "WITHOUT compiled operators: torch is not installed" in lines.pop()


def test_without_compiler_the_package_is_pure_python_and_one_line_says_so() -> None:
    result = run(sys.executable, "-c", BUILD_ARGUMENTS, CXX="no-such-compiler")
    assert "WITHOUT compiled operators: no C++ compiler: no-such-compiler" in result.stderr


def test_compiler_that_cannot_compile_is_named_with_its_message() -> None:
    result = run(sys.executable, "-c", BUILD_ARGUMENTS, CXX="false")
    assert "WITHOUT compiled operators: false cannot compile" in result.stderr


def test_modules_to_build() -> None:
    code = BUILD_ARGUMENTS.replace("extensions.build_arguments()", "arguments = extensions.build_arguments()")
    code += "; print(*(module.name for module in arguments['ext_modules']))"
    assert run(sys.executable, "-c", code, CXX="true").stdout.strip() == "sdpt_ext._C sdpt_ext._host"


@pytest.mark.parametrize(
    ("capabilities", "chosen", "expected"),
    [
        ([(9, 0), (8, 0), (9, 0)], "", "8.0;9.0a"),
        ([(12, 0)], "", "12.0"),
        ([], "", "8.0;8.6;8.9;9.0a;9.0+PTX"),
        ([(9, 0)], "8.0+PTX", "8.0+PTX"),
    ],
)
def test_kernels_are_built_for_the_devices_that_are_there(
    capabilities: list[tuple[int, int]], chosen: str, expected: str
) -> None:
    code = f"import sys; sys.path.insert(0, {str(BACKEND)!r}); import toolchain, torch; capabilities = {capabilities}"
    code += "; torch.cuda.device_count = lambda: len(capabilities)"
    code += "; torch.cuda.get_device_capability = capabilities.__getitem__; print(toolchain.cuda_architectures())"
    assert run(sys.executable, "-c", code, TORCH_CUDA_ARCH_LIST=chosen).stdout.strip() == expected


@pytest.mark.parametrize(
    ("release", "expected", "message"),
    [
        ("release 13.0, V13.0.48", "True", ""),
        ("release 12.4, V12.4.99", "False", "nvcc is of CUDA 12.4 and torch of 13.1 (set CUDA_HOME"),
        ("nothing", "False", "does not tell its version"),
        (None, "False", "no nvcc in"),
    ],
)
def test_cuda_kernels_need_an_nvcc_that_fits_torch(
    release: str | None, expected: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    if release is not None:
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho '{release}'\n")
        nvcc.chmod(0o755)
    code = f"import sys; sys.path.insert(0, {str(BACKEND)!r}); import toolchain, torch, torch.utils.cpp_extension as c"
    code += f"; torch.version.cuda = '13.1'; c.CUDA_HOME = {str(tmp_path)!r}; print(toolchain.builds_cuda())"
    result = run(sys.executable, "-c", code)
    assert result.stdout.strip() == expected
    assert (message in result.stderr) and ("WITHOUT CUDA kernels" in result.stderr) == (expected == "False")


def test_cuda_sources_get_back_what_torch_takes_away() -> None:
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

    code = BUILD_ARGUMENTS.replace("extensions.build_arguments()", "print(*extensions.NVCC_FLAGS)")
    flags = run(sys.executable, "-c", code).stdout.split()
    taken = [flag for flag in COMMON_NVCC_FLAGS if flag.startswith("-D__CUDA_NO_")]
    assert taken
    assert {flag.replace("-D", "-U", 1) for flag in taken} <= set(flags)
