"""The tests of the operators, run again on the CUDA kernels in the simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cudasim import simulator

pytestmark = [pytest.mark.cudasim, simulator.needs_simulator]
OPERATORS = sorted(path.name for path in (simulator.ROOT / "tests" / "ops").glob("test_*.py"))


@pytest.fixture(scope="module")
def library() -> Path:
    return simulator.build()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("tests", OPERATORS)
def test_kernels_pass_the_tests_of_the_operator(tests: str, seed: int, library: Path) -> None:
    environment = {
        **os.environ,
        "SDPT_EXT_LIBRARY": str(library),
        "SDPT_EXT_BACKEND": "auto",
        "CUDASIM_SEED": str(seed),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cudasim.checks", f"tests/ops/{tests}"]
    result = subprocess.run(command, cwd=simulator.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-10000:] + result.stderr[-2000:]
