from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "python" / "tools" / "ptxas_table.py"))

REPORT = """ptxas info    : Compiling entry function '_Z4slowPf' for 'sm_90'
ptxas info    : Function properties for _Z4slowPf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 40960 bytes smem
ptxas info    : Compiling entry function '_Z4fastPf' for 'sm_90'
ptxas info    : Function properties for _Z4fastPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 33 registers
"""
PTX = """.visible .entry _Z4slowPf(
\t.param .u64 _Z4slowPf_param_0
)
.maxntid 256, 1, 1
.minnctapersm 2
{
"""


def test_report_and_launch_bounds_are_read() -> None:
    slow, fast = TOOL["parse"](REPORT, {"90": PTX})
    assert slow.architecture == "90"
    assert (slow.threads, slow.registers, slow.spilled_bytes, slow.shared_bytes) == (256, 128, 20, 40960)
    assert (fast.threads, fast.registers, fast.spilled_bytes, fast.shared_bytes) == (1024, 33, 0, 0)
    assert slow.occupancy() == 0.25  # 2 blocks of 8 warps, limited by registers
    assert fast.occupancy() == 0.5  # 33 registers are given out as 40, so a second block of 32 warps does not fit
    assert TOOL["readable"]([slow.name]) == {"_Z4slowPf": "slow"}


def test_committed_table_covers_every_architecture_and_spills_where_it_is_known() -> None:
    cells = [[cell.strip() for cell in line.split("|")] for line in TOOL["committed_rows"]()]
    assert {cell[3] for cell in cells} == set(TOOL["ARCHITECTURES"])
    spilling = [cell for cell in cells if cell[6] != "0"]
    assert {cell[1] for cell in spilling} <= {
        "bi_attention_forward.cu",
        "bi_attention_forward_hopper.cu",
        "bi_attention_backward.cu",
        "bi_attention_backward_hopper.cu",
    }
    # On a Hopper, of what runs on tensor cores, the two-stage text gradient misses its registers by a little, and so
    # does the image direction that keeps 144 to 288 scores per row in registers. Its gradients keep numbers of their
    # tiles in memory, which they need outside their loops.
    most = {
        "`text_backward": 40,
        "`hopper::image_forward": 372,
        "`hopper::image_backward": 348,
        "`hopper::text_backward": 44,
    }
    hopper = {
        cell[2]: int(cell[6]) for cell in spilling if cell[3] == "90a" and ("half" in cell[2] or "bfloat" in cell[2])
    }
    assert all(spilled <= most.get(name.split("<")[0], 0) for name, spilled in hopper.items())


@pytest.mark.cudasim
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_suppression_compiles_to_the_rows_of_the_committed_table() -> None:
    if TOOL["compiler_version"]() not in TOOL["TABLE"].read_text():
        pytest.skip("the committed table is of another nvcc")
    fresh = TOOL["compile_rows"](ROOT / "csrc" / "cuda" / "nms.cu")
    assert set(fresh) == {line for line in TOOL["committed_rows"]() if line.startswith("| nms.cu")}
