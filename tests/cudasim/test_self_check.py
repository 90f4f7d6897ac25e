"""A CUDA kernel that is broken is found out on its first use, named in one warning, and replaced: by one that runs on
every GPU if there is one, else by PyTorch."""

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

ATTEND = """
import torch
from sdpt_ext import _self_check
from sdpt_ext.ops import bi_attention
from tests.cudasim import simulator

cudasim, solve = simulator.load(), _self_check._solve

def solve_badly(op_name, device_type, dtype, backend):
    results = solve(op_name, device_type, dtype, backend)
    broken = {broken} and backend == "ext" and any("hopper" in launch["kernel"] for launch in cudasim.launches())
    cudasim.reset()
    return [-result for result in results] if broken else results

_self_check._solve = solve_badly
x, keys, values = (torch.ones(1, *sizes, 256).bfloat16() for sizes in ((70,), (2, 5), (2, 5)))
for _ in range(2):
    y, u = bi_attention(x, keys, torch.zeros(1, 2, 5), values)
    torch.testing.assert_close((y, u), (2 * x, keys), rtol=0.01, atol=0)
print(sorted({{"hopper" in launch["kernel"] for launch in cudasim.launches()}}))
"""


TRAIN = """
import torch
from sdpt_ext.ops import bi_attention
from tests.cudasim import simulator

cudasim = simulator.load()
x, keys, values = (torch.ones(1, *sizes, 256) for sizes in ((70,), (2, 5), (2, 5)))
for training in (False, False, True, True):
    cudasim.reset()
    y, _ = bi_attention(x.requires_grad_(training), keys, torch.zeros(1, 2, 5), values)
    torch.testing.assert_close(y, 2 * torch.ones_like(x))
    print(len(cudasim.launches()) > 0)
"""

COUNT = """
import torch
from sdpt_ext import _self_check
from tests.cudasim import simulator

cudasim = simulator.load()
_self_check._solve("{operator}", "cpu", torch.bfloat16, "ext")
names = {{launch["kernel"] for launch in cudasim.launches()}}
print([len({{name for name in names if kernel in name}}) for kernel in {kernels}])
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


def run(program: str, library: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "SDPT_EXT_LIBRARY": str(library),
        "SDPT_EXT_BACKEND": "auto",
        "PYTHONPATH": str(simulator.ROOT),
        **environment,
    }
    command = [sys.executable, "-W", "always", "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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
    result = run(SUPPRESS, library_with(tmp_path, right, wrong))
    assert result.stdout.strip() == "[1, 2]", result.stderr
    assert result.stderr.count("RuntimeWarning: sdpt_ext: running the slower PyTorch path") == 1
    assert warning in result.stderr


@pytest.mark.parametrize(("broken", "hopper"), [(False, True), (True, False)])
def test_broken_kernel_of_a_hopper_makes_way_for_the_portable_one(broken: bool, hopper: bool) -> None:
    result = run(ATTEND.format(broken=broken), simulator.build())
    assert result.stdout.strip() == f"[{hopper}]", result.stderr
    named = "the bi_attention kernel for torch.bfloat16 on cpu gives wrong numbers; the slower one"
    assert result.stderr.count("RuntimeWarning: sdpt_ext:") == result.stderr.count(named) == int(broken)


def test_environment_keeps_a_hoppers_own_kernels_out() -> None:
    result = run(ATTEND.format(broken=True), simulator.build(), SDPT_EXT_CUDA_CAPABILITY="portable")
    assert result.stdout.strip() == "[False]", result.stderr
    assert "RuntimeWarning: sdpt_ext:" not in result.stderr


def test_kernel_without_room_for_gradients_runs_where_none_are_asked_for() -> None:
    result = run(TRAIN, simulator.build(), SDPT_EXT_SHARED_MEMORY=str(99 * 1024))
    at_rest, training = result.stdout.split()[1::2]  # the first call of each kind is the check as well
    assert (at_rest, training) == ("True", "False"), result.stderr
    assert result.stderr.count("RuntimeWarning: sdpt_ext:") == 1
    assert "bytes of shared memory per block, and this device has 101376" in result.stderr


def test_every_tile_of_the_deformable_convolution_is_checked() -> None:
    kernels = ("forward", "backward_data", "backward_weight")
    result = run(COUNT.format(operator="deform_conv2d", kernels=kernels), simulator.build())
    assert result.stdout.strip() == "[3, 1, 2]", result.stdout + result.stderr


def test_every_kernel_of_a_hopper_is_checked() -> None:
    kernels = ("hopper::image_forward", "hopper::text_forward", "hopper::image_backward", "hopper::text_backward")
    result = run(COUNT.format(operator="bi_attention", kernels=kernels), simulator.build())
    assert result.stdout.strip() == "[6, 1, 4, 1]", result.stdout + result.stderr


def test_overview_names_what_was_checked() -> None:
    program = "import runpy; runpy.run_module('sdpt_ext', run_name='__main__')"
    overview = run(program, simulator.build()).stdout
    for operator in ("bi_attention", "deform_conv2d", "join_prompts", "nms"):
        assert f"{operator} (cpu)".ljust(22) + "ext: CUDA kernel, right on first use in torch.float32" in overview
