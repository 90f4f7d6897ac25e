"""The tests of the operators, run again on the CUDA kernels in the simulator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cudasim import simulator

pytestmark = [pytest.mark.cudasim, simulator.needs_simulator]
OPERATORS = sorted(path.name for path in (simulator.ROOT / "tests" / "ops").glob("test_*.py"))
# A Hopper has its own kernels for some sizes; an older architecture runs those that they replace.
RUNS = [
    *((tests, "sm_90a", seed) for tests in OPERATORS for seed in (0, 1)),
    ("test_bi_attention_cuda.py", "sm_80", 2),
]


@pytest.mark.parametrize(("tests", "architecture", "seed"), RUNS)
def test_kernels_pass_the_tests_of_the_operator(tests: str, architecture: str, seed: int) -> None:
    library = simulator.build(architecture=architecture)
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
