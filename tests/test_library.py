"""Choosing and loading the compiled operators, each case in a process of its own: a library loads only once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sdpt_ext
from sdpt_ext import _library

RUN_OPERATORS = """
import torch
from sdpt_ext.ops import deform_conv2d, nms
for _ in range(2):
    kept = nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9]), torch.ones(2).long(), 0.5)
    deform_conv2d(torch.ones(1, 1, 4, 4), torch.zeros(1, 18, 4, 4), None, torch.ones(1, 1, 3, 3))
print(kept.tolist())
"""

needs_library = pytest.mark.skipif(_library.library().path is None, reason="the operators are not compiled here")


def run(code: str, package: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    root = package or Path(sdpt_ext.__file__).parent.parent
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SDPT_EXT_")}
    environment = {**kept, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-W", "always", *(["-c", code] if "\n" in code else ["-m", code])]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def package_without_library(tmp_path: Path) -> Path:
    """A folder whose `sdpt_ext` is the real package without its compiled files."""
    package = tmp_path / "sdpt_ext"
    package.mkdir()
    for item in Path(sdpt_ext.__file__).parent.iterdir():
        if item.suffix != ".so" and item.name != "__pycache__":
            (package / item.name).symlink_to(item)
    return tmp_path


def copy_of_library(folder: Path) -> Path:
    built = _library.library().path
    assert built is not None
    copy = folder / "operators.so"
    copy.write_bytes(built.read_bytes())
    return copy


@needs_library
def test_compiled_operators_run_without_a_warning() -> None:
    result = run(RUN_OPERATORS)
    assert result.stdout.strip() == "[1]"
    assert "sdpt_ext:" not in result.stderr


def test_backend_torch_works_with_one_warning() -> None:
    result = run(RUN_OPERATORS, SDPT_EXT_BACKEND="torch")
    assert result.stdout.strip() == "[1]"
    assert result.stderr.count("RuntimeWarning: sdpt_ext:") == 1
    assert "SDPT_EXT_BACKEND" in result.stderr


def test_missing_library_works_with_one_warning_that_names_the_fix(package_without_library: Path) -> None:
    result = run(RUN_OPERATORS, package_without_library)
    assert result.stdout.strip() == "[1]", result.stderr
    assert result.stderr.count("RuntimeWarning: sdpt_ext:") == 1
    assert "pip install ." in result.stderr


def test_backend_ext_without_library_raises_and_names_the_fix(package_without_library: Path) -> None:
    result = run(RUN_OPERATORS, package_without_library, SDPT_EXT_BACKEND="ext")
    assert result.returncode != 0
    assert "pip install ." in result.stderr.splitlines()[-1]


def test_unknown_backend_is_an_error() -> None:
    result = run(RUN_OPERATORS, SDPT_EXT_BACKEND="fast")
    assert result.returncode != 0
    assert "SDPT_EXT_BACKEND='fast': choose one of auto, ext, torch" in result.stderr


@needs_library
def test_chosen_library_replaces_the_built_one(package_without_library: Path, tmp_path: Path) -> None:
    copy = copy_of_library(tmp_path)
    result = run(RUN_OPERATORS, package_without_library, SDPT_EXT_LIBRARY=str(copy), SDPT_EXT_BACKEND="ext")
    assert result.stdout.strip() == "[1]", result.stderr
    shown = run("sdpt_ext", SDPT_EXT_LIBRARY=str(copy)).stdout
    assert str(copy) in shown


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_chosen_library_that_does_not_load_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "operators.so"
    if content is not None:
        path.write_bytes(content)
    result = run(RUN_OPERATORS, SDPT_EXT_LIBRARY=str(path))
    assert result.returncode != 0
    assert f"SDPT_EXT_LIBRARY={path}" in result.stderr.splitlines()[-1]


@needs_library
def test_report_says_what_runs_and_why() -> None:
    shown = run("sdpt_ext").stdout
    assert f"torch                 {torch.__version__}" in shown
    assert "deform_conv2d (cpu)   ext: compiled kernel" in shown
    forced = run("sdpt_ext", SDPT_EXT_BACKEND="torch").stdout
    assert "nms (cpu)             torch: SDPT_EXT_BACKEND=torch asks for it" in forced


def test_report_names_the_reason_for_a_missing_library(package_without_library: Path) -> None:
    shown = run("sdpt_ext", package_without_library).stdout
    assert "library               none: no compiled library in" in shown
    assert "nms (cpu)             torch: no compiled library in" in shown
    strict = run("sdpt_ext", package_without_library, SDPT_EXT_BACKEND="ext").stdout
    assert "nms (cpu)             error: no compiled library in" in strict
