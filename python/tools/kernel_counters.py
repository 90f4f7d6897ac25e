"""Run the CUDA kernels in the simulator and write what they execute to docs/kernels.md.

Every kernel runs whole, in bf16, on GLIP's largest inputs: half an hour on one core. With --workloads the rows of the
others stay as they are. Needs nvcc and the simulator (SDPT_CUDASIM).

python python/tools/kernel_counters.py
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "kernels.md"
sys.path.insert(0, str(ROOT))
# An H100 (SXM).
MULTIPROCESSORS, CLOCK = 132, 1.83e9
TENSOR_PEAK, MEMORY_PEAK, L2_PEAK = 989e12, 3.35e12, 5.5e12  # bf16 FLOP/s, bytes/s
SPECIAL_PER_CLOCK, WARPS_PER_CLOCK, WAVEFRONTS_PER_CLOCK = 16, 4, 1  # of a multiprocessor
SECTOR = 32  # bytes
MMA = 2 * 16 * 8 * 16  # FLOPs of the largest mma.sync
# Of the Hopper's bi_attention: rows of an image tile, and the most tokens of texts for which tiles stay whole.
IMAGE_TILE, SHORT_TEXT = 128, 32


@dataclass(frozen=True)
class Need:
    """What the algebra needs of a kernel.

    Attributes:
        flops: on tensor cores.
        bytes: every operand and result once, every neighbour of a sample as often as it is sampled.
        tiles: that blocks take whole; 0 where they share them, or where a block is one tile.
    """

    flops: float
    bytes: float
    tiles: int = 0


@dataclass(frozen=True)
class Workload:
    """A simulated call, and the needs of its kernels by a part of their names."""

    name: str
    run: Callable[[], Any]
    needs: dict[str, Need]


def deform_conv2d_workloads() -> Iterator[Workload]:
    """GLIP's finest pyramid level at 800x1333."""
    import torch

    channels, rows, width = 256, 100, 167
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
    sampling = Need(flops, 2 * (samples + pixels + fields + filters))
    scattering = Need(flops, 2 * (samples + pixels + 2 * fields + filters) + 8 * samples)
    yield Workload("deform_conv2d", lambda: ops.deform_conv2d(*arguments, None, *step), {"forward": sampling})
    yield Workload(
        "its backward, data",
        lambda: ops.deform_conv2d_backward_data(grad, *arguments, *step, True, True),
        {"backward_data": scattering},
    )
    yield Workload(
        "its backward, weight",
        lambda: ops.deform_conv2d_backward_weight(grad, *arguments, *step),
        {"backward_weight": sampling},
    )


def bi_attention_workloads(tokens: int) -> Iterator[Workload]:
    """GLIP's fusion layer at 800x1333: 22,300 positions, 8 heads."""
    import torch

    positions, heads, width = 22_300, 8, 256
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).bfloat16()

    x, keys, values = random(1, positions, width), random(1, heads, tokens, width) / 16, random(1, heads, tokens, width)
    inputs, options = (x, keys, torch.zeros(1, heads, tokens), values, None, None), (tokens, 0.0, 0)
    ops = torch.ops.sdpt_ext
    saved: list[torch.Tensor] = []

    def forward() -> None:
        saved[:] = ops.bi_attention(*inputs, *options)

    def backward() -> None:
        y, u, mass, image_lse, text_lse = saved
        ops.bi_attention_backward(y, u, mass, *inputs, u, mass, image_lse, text_lse, *options)

    product, image, text = 2 * positions * width * heads * tokens, x.numel(), keys.numel()
    tiles = ceil(positions / IMAGE_TILE) if tokens <= SHORT_TEXT else 0
    yield Workload(
        f"bi_attention, T = {tokens}",
        forward,
        {
            "image_forward": Need(2 * product, 2 * (2 * image + 2 * text), tiles),
            "text_forward": Need(2 * product, 2 * (image + 2 * text)),
        },
    )
    yield Workload(
        f"its backward, T = {tokens}",
        backward,
        {
            "image_backward": Need(5 * product, 2 * (3 * image + 3 * text), tiles),
            "text_backward": Need(5 * product, 2 * (2 * image + 5 * text)),
        },
    )


def join_prompts_workloads() -> Iterator[Workload]:
    """Ten prompts of a fusion layer in training, float32 tokens beside 256 text rows in bf16."""
    import torch

    heads, text, width, count, depth = 8, 256, 256, 10, 2048
    outputs = width + heads * (2 * width + 1)
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    keys, bias, values = (random(1, heads, text, *last).bfloat16() for last in ((width,), (), (width,)))
    tokens, weight, offset = random(count, depth), random(outputs, depth), random(outputs)
    ops = torch.ops.sdpt_ext
    joined: list[torch.Tensor] = []

    def forward() -> None:
        joined[:] = ops.join_prompts(keys, bias, values, tokens, weight, offset)

    rows, of_prompts = 2 * heads * text * width, outputs * count
    maps = 4 * (weight.numel() + tokens.numel())
    yield Workload("join_prompts, K = 10", forward, {"join_rows": Need(0, maps + 2 * (2 * rows + of_prompts))})
    yield Workload(
        "its backward, K = 10",
        lambda: ops.join_prompts_backward(*joined, weight),
        {
            "gather_gradients": Need(0, (2 + 4) * of_prompts),
            "multiply_back": Need(0, maps + 4 * of_prompts),
        },
    )


def need_of(workload: Workload, launch: dict[str, Any]) -> Need | None:
    """What the algebra needs of a launch; None for the small ones around it."""
    needs = (need for part, need in workload.needs.items() if part in name_of(launch))
    return next((need for need in needs if (need.flops > 0) == (launch["mma_flops"] > 0)), None)


def launches(workload: Workload) -> list[dict[str, Any]]:
    """The launches of the workload that do what it is for."""
    import cudasim

    cudasim.reset()
    workload.run()
    cudasim.assert_clean()
    return [launch for launch in cudasim.launches() if need_of(workload, launch) is not None]


def name_of(launch: dict[str, Any]) -> str:
    return re.sub(r"sdpt_ext::cuda::|\(anonymous namespace\)::|void ", "", launch["kernel"]).split("(")[0]


def traffic(launch: dict[str, Any]) -> float:
    """Bytes that blocks ask of global memory, whichever cache answers."""
    sectors = launch["global"]["sectors"] * launch["blocks"] / max(launch["traced_blocks"], 1)
    # Copies of whole boxes are counted apart from sectors.
    return sectors * SECTOR + (launch["async_copy_bytes"] if "hopper::" in launch["kernel"] else 0)


def bounds(launch: dict[str, Any], need: Need) -> dict[str, float]:
    """Seconds that an H100 takes at the very least, by what it would be busy with."""
    wavefronts = launch["shared"]["wavefronts"] * launch["blocks"] / max(launch["traced_blocks"], 1)
    clocks = MULTIPROCESSORS * CLOCK
    return {
        "tensor cores": launch["mma_flops"] / TENSOR_PEAK,
        "memory": need.bytes / MEMORY_PEAK,
        "L2": traffic(launch) / L2_PEAK,
        "shared memory": wavefronts / (WAVEFRONTS_PER_CLOCK * clocks),
        "special functions": launch["instructions"]["sfu"] / (SPECIAL_PER_CLOCK * clocks),
        "instructions": launch["total_instructions"] / (32 * WARPS_PER_CLOCK * clocks),
    }


def row(workload: Workload, launch: dict[str, Any]) -> str:
    import cudasim

    need = need_of(workload, launch)
    assert need is not None
    resident, occupancy, limit = cudasim.occupancy(launch)
    waves = (need.tiles or launch["blocks"]) / (resident * MULTIPROCESSORS)
    times = bounds(launch, need)
    bound = max(times, key=lambda part: times[part])
    special = launch["instructions"]["sfu"] / 32
    others = (launch["total_instructions"] - launch["instructions"]["mma"]) / 32
    units = launch["mma_flops"] / MMA
    ratios = f"{special / units:.2f} | {others / units:.1f}" if units else "- | -"
    flops = f"{launch['mma_flops'] / need.flops:.2f}" if units else "-"
    share = f"{need.flops / TENSOR_PEAK / times[bound]:.0%}" if units else "-"
    return (
        f"| {workload.name} | `{name_of(launch)}` | {launch['blocks']} | {resident} ({limit}), {occupancy:.0%} "
        f"| {waves:.2f}, {waves / ceil(waves):.0%} | {flops} "
        f"| {traffic(launch) / need.bytes:.1f} | {launch['shared']['conflict_degree']:.2f} "
        f"| {ratios} | {bound}, {1e6 * times[bound]:.0f} | {share} |"
    )


INTRODUCTION = """# What the CUDA kernels execute

Written by `python python/tools/kernel_counters.py` from the simulator's counters: bf16, GLIP's largest inputs
(800x1333: 22,300 positions in 8 heads of width 256; 256 channels of 100x167). Nothing here was timed.

* **waves** of blocks on 132 multiprocessors, and the share of the last one's places that are filled. The blocks of
  bi_attention share their work out evenly, whatever the sizes; but along the image, texts of at most 32 tokens take
  less time for another whole tile than for partial sums of a shared one, and these are waves of tiles.
* **FLOPs** on tensor cores against those that the algebra needs; **traffic** against every operand and result once, and
  a sampled neighbour once per sample (8 bytes when it is added to). All traffic of the blocks counts, whichever cache
  answers.
* **special** functions and **other** instructions of a warp per 4,096 tensor FLOPs, which is one `mma.m16n8k16`.
* **bound**: of tensor cores, memory, L2, shared memory (without what tensor cores read there themselves), special
  functions and the issue of instructions, the one that an H100 would be busy with the longest, in microseconds at its
  peak; then the share of its tensor peak (989 TFLOP/s) that this leaves for the needed FLOPs. Waiting is not in it.
* join_prompts reads a matrix of 36 MB once, for ten tokens: no tensor core would change its time.
"""
HEADER = (
    "| workload | kernel | blocks | per SM, occupancy | waves, filled | FLOPs / minimum | traffic / minimum "
    "| bank conflict factor | special / mma | other / mma | bound, us | tensor peak |\n" + "|---" * 12 + "|"
)
WORKLOADS: dict[str, Callable[[], Iterator[Workload]]] = {
    "deform_conv2d": deform_conv2d_workloads,
    "bi_attention-20": lambda: bi_attention_workloads(20),
    "bi_attention-256": lambda: bi_attention_workloads(256),
    "join_prompts": join_prompts_workloads,
}


def other_rows(names: set[str]) -> list[str]:
    """The rows of the table as it is, but those of the workloads of these names."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    rows = lines[next((i for i, line in enumerate(lines, 1) if line.startswith("|---")), len(lines)) :]
    return [line for line in rows if line.split("|")[1].strip() not in names]


def main() -> None:
    from tests.cudasim import simulator

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="default: all")
    parser.add_argument("--library", type=Path, help="simulated library; default: built from csrc")
    parser.add_argument("--raw", type=Path, help="also write the counters as they are to this JSON file")
    arguments = parser.parse_args()
    cudasim = simulator.load()
    os.environ["SDPT_EXT_LIBRARY"] = str(arguments.library or simulator.build())
    cudasim.torch_allocator()
    cudasim.checks(strict=False, race=False, init=False)  # the operators' tests have them all
    from sdpt_ext import _library

    if not _library.runs_cuda_kernels("cpu"):
        parser.error(f"{os.environ['SDPT_EXT_LIBRARY']} holds no simulated kernels: {_library.library().problem}")
    counted = [
        (workload, launch)
        for name in arguments.workloads
        for workload in WORKLOADS[name]()
        for launch in launches(workload)
    ]
    rows = [row(workload, launch) for workload, launch in counted]
    kept = other_rows({workload.name for workload, _ in counted})
    TABLE.write_text("\n".join([INTRODUCTION, HEADER, *kept, *rows]) + "\n")
    if arguments.raw:
        arguments.raw.write_text(json.dumps([launch for _, launch in counted]))


if __name__ == "__main__":
    main()
