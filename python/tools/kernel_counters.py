"""Run the CUDA kernels in the simulator and write what they execute to docs/kernels.md.

A slice of GLIP's largest inputs stands for the whole: its blocks all do the same work. Needs nvcc and the simulator
(SDPT_CUDASIM).

python python/tools/kernel_counters.py
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MULTIPROCESSORS = 132  # of an H100
TENSOR_PEAK, BANDWIDTH_PEAK = 989e12, 3.35e12  # its bf16 FLOP/s and bytes/s
SECTOR = 32


@dataclass(frozen=True)
class Workload:
    """A simulated problem, and what the algebra needs for it."""

    name: str
    run: Callable[[], Any]
    flops: float  # on tensor cores
    bytes: float  # every operand and result once, every neighbour of a sample as often as it is sampled


def deform_conv2d_workloads() -> list[Workload]:
    """26 of the 100 rows of GLIP's finest pyramid level at 800x1333: enough for the widest tiles."""
    import torch

    channels, rows, width = 256, 26, 167
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).bfloat16()

    image, grad = random(1, channels, rows, width), random(1, channels, rows, width)
    offset, mask, weight = random(1, 18, rows, width), random(1, 9, rows, width), random(channels, channels, 3, 3)
    arguments, step = (image, offset, mask, weight), ([1, 1], [1, 1])
    ops = torch.ops.sdpt_ext
    flops = 2 * weight.numel() * rows * width
    pixels, fields, filters = image.numel(), offset.numel() + mask.numel(), weight.numel()
    samples = 4 * 9 * pixels  # four neighbours per tap

    def forward() -> None:
        ops.deform_conv2d(*arguments, None, *step)

    def backward_data() -> None:
        ops.deform_conv2d_backward_data(grad, *arguments, *step, True, True)

    def backward_weight() -> None:
        ops.deform_conv2d_backward_weight(grad, *arguments, *step)

    return [
        Workload("deform_conv2d", forward, flops, 2 * (samples + pixels + fields + filters)),
        Workload("backward, data", backward_data, flops, 2 * (samples + pixels + 2 * fields + filters) + 8 * samples),
        Workload("backward, weight", backward_weight, flops, 2 * (samples + pixels + fields + filters)),
    ]


def bi_attention_workloads(tokens: int) -> list[Workload]:
    """1,024 of the 22,300 positions of GLIP's fusion layer at 800x1333, with 8 heads."""
    import torch

    positions, heads, width = 1024, 8, 256
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).bfloat16()

    x, keys, values = random(1, positions, width), random(1, heads, tokens, width) / 16, random(1, heads, tokens, width)
    inputs, options = (x, keys, torch.zeros(1, heads, tokens), values, None, None), (tokens, 0.0, 0)
    ops = torch.ops.sdpt_ext
    y, u, mass, image_lse, text_lse = ops.bi_attention(*inputs, *options)
    product, texts = 2 * positions * width * heads * tokens, keys.numel()

    def forward() -> None:
        ops.bi_attention(*inputs, *options)

    def backward() -> None:
        ops.bi_attention_backward(y, u, mass, *inputs, u, mass, image_lse, text_lse, *options)

    return [
        Workload(f"bi_attention, T = {tokens}", forward, 4 * product, 2 * (2 * x.numel() + 3 * texts)),
        Workload(f"backward, T = {tokens}", backward, 10 * product, 2 * (3 * x.numel() + 6 * texts)),
    ]


def launches(workload: Workload) -> list[dict[str, Any]]:
    """The launches of the workload that use tensor cores."""
    import cudasim

    cudasim.reset()
    workload.run()
    cudasim.assert_clean()
    return [launch for launch in cudasim.launches() if launch["mma_flops"] > 0]


def row(workload: Workload, launch: dict[str, Any]) -> str:
    import cudasim

    resident, occupancy, limit = cudasim.occupancy(launch)
    traffic = launch["global"]["sectors"] * launch["blocks"] / max(launch["traced_blocks"], 1) * SECTOR
    times = {"tensor cores": launch["mma_flops"] / TENSOR_PEAK, "L2 and memory": traffic / BANDWIDTH_PEAK}
    name = re.sub(r"sdpt_ext::cuda::|\(anonymous namespace\)::|void ", "", launch["kernel"]).split("(")[0]
    others = launch["total_instructions"] - launch["instructions"]["mma"]
    return (
        f"| {workload.name} | `{name}` | {launch['blocks']} | {resident} ({limit}) | {occupancy:.0%} "
        f"| {launch['mma_flops'] / workload.flops:.2f} | {traffic / workload.bytes:.1f} "
        f"| {launch['shared']['conflict_degree']:.2f} | {others / launch['instructions']['mma']:.0f} "
        f"| {max(times, key=lambda part: times[part])} |"
    )


INTRODUCTION = """# What the CUDA kernels execute

Written by `python python/tools/kernel_counters.py` from the simulator's counters, in bf16 on a slice of GLIP's largest
inputs. Nothing here is a time. The minimum of FLOPs is what the algebra needs, that of sectors every operand and result
once, and a sampled neighbour once per sample (8 bytes when it is added to); all sectors that blocks ask for count,
whichever cache answers. The bound compares both with an H100's peaks.
"""
HEADER = (
    "| workload | kernel | blocks | blocks per SM | occupancy | tensor FLOPs / minimum | global sectors / minimum "
    "| bank conflict factor | other instructions per mma | bound |\n|---|---|---|---|---|---|---|---|---|---|"
)


WORKLOADS: dict[str, Callable[[], list[Workload]]] = {
    "deform_conv2d": deform_conv2d_workloads,
    "bi_attention": lambda: [*bi_attention_workloads(20), *bi_attention_workloads(256)],
}


def main() -> None:
    from tests.cudasim import simulator

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="default: all")
    parser.add_argument("--library", type=Path, help="simulated library; default: built from csrc")
    arguments = parser.parse_args()
    cudasim = simulator.load()
    os.environ["SDPT_EXT_LIBRARY"] = str(arguments.library or simulator.build())
    cudasim.torch_allocator()
    from sdpt_ext import _library

    if not _library.runs_cuda_kernels("cpu"):
        parser.error(f"{os.environ['SDPT_EXT_LIBRARY']} holds no simulated kernels: {_library.library().problem}")
    workloads = [workload for operator in arguments.operators for workload in WORKLOADS[operator]()]
    rows = [row(workload, launch) for workload in workloads for launch in launches(workload)]
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "kernels.md").write_text("\n".join([INTRODUCTION, HEADER, *rows]) + "\n")


if __name__ == "__main__":
    main()
