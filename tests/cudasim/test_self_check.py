"""A CUDA kernel that is broken is found out on its first use, named in one warning, and replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cudasim import simulator

pytestmark = [pytest.mark.cudasim, simulator.needs_simulator]

SUPPRESS = """
import torch
from sdpt_ext.ops import nms
boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [40, 40, 49, 49]])
for _ in range(2):
    kept = nms(boxes, torch.tensor([0.5, 0.9, 0.1]), torch.ones(3).long(), 0.5)
print(kept.tolist())
"""


def library_with(folder: Path, right: str, wrong: str) -> Path:
    """Suppression alone, with a text of its source replaced."""
    sources = folder / "csrc"
    shutil.copytree(simulator.ROOT / "csrc", sources, ignore=shutil.ignore_patterns("cpu", "host"))
    for kernel in (sources / "cuda").glob("*.cu"):
        if kernel.name != "nms.cu":
            kernel.unlink()
    registration = sources / "cuda" / "register.cpp"
    lines = registration.read_text().splitlines(keepends=True)
    registration.write_text("".join(line for line in lines if "m.impl" not in line or '"nms"' in line))
    kernel = sources / "cuda" / "nms.cu"
    assert kernel.read_text().count(right) == 1
    kernel.write_text(kernel.read_text().replace(right, wrong))
    return simulator.build(sources)


@pytest.mark.parametrize(
    ("right", "wrong", "warning"),
    [
        (
            "- shared) > threshold",
            "- shared) < threshold",
            "the nms kernel for torch.float32 on cpu gives wrong numbers",
        ),
        ("kWalkThreads = 512", "kWalkThreads = 2048", "the nms kernel for torch.float32 on cpu does not run"),
    ],
)
def test_broken_kernel_is_named_and_replaced(right: str, wrong: str, warning: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "SDPT_EXT_LIBRARY": str(library_with(tmp_path, right, wrong)),
        "SDPT_EXT_BACKEND": "auto",
        "PYTHONPATH": str(simulator.ROOT),
    }
    command = [sys.executable, "-W", "always", "-c", SUPPRESS]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[1, 2]", result.stderr
    assert result.stderr.count("RuntimeWarning: sdpt_ext: running the slower PyTorch path") == 1
    assert warning in result.stderr
