"""The tests of the operators, run again on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
OPERATORS = sorted(path.name for path in (ROOT / "tests" / "ops").glob("test_*.py"))


@pytest.mark.parametrize("tests", OPERATORS)
def test_kernels_pass_the_tests_of_the_operator(tests: str) -> None:
    environment = {**os.environ, "SDPT_EXT_TEST_DEVICE": "cuda"}
    command = [sys.executable, "-m", "pytest", "-q", f"tests/ops/{tests}"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-10000:] + result.stderr[-2000:]
