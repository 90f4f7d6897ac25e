"""Time of the compiled deformable convolution against its plain PyTorch reference, forward and backward.

Both are measured in one run, alternating, so that a busy machine slows them alike. Floors come from the kernel plan:
the floating point operations that the definition needs, at the speed of a large matrix product measured in the
same run.

    python python/benchmarks/deform_conv.py --json deform_conv.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdpt_ext import _host
from sdpt_ext.ops import deform_conv2d


class Shape(NamedTuple):
    batch: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


# GLIP's finest level at 800x1333, a middle level, and the finest level of the small model in a training batch.
SHAPES = (Shape(1, 256, 100, 167), Shape(1, 256, 50, 84), Shape(8, 64, 32, 43))


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    hardware = f"{processor_name()}, {arguments.threads} threads, torch {torch.__version__}"
    peak = matmul_peak(arguments.repeats)
    print(f"{hardware}\nmatrix product: {peak / 1e9:.0f} GFLOP/s")
    print(f"{'input':<16}{'pass':<10}{'torch ms':>10}{'ext ms':>10}{'ratio':>8}{'GFLOP/s':>10}{'of peak':>9}")
    results = [row for shape in arguments.shapes for row in measure(shape, arguments, peak)]
    for row in results:
        print(
            f"{row['input']:<16}{row['pass']:<10}{row['torch_ms']:>10.1f}{row['ext_ms']:>10.1f}{row['ratio']:>7.1f}x"
            f"{row['gflops']:>10.0f}{row['fraction_of_peak']:>9.0%}"
        )
    if arguments.json:
        report = {"hardware": hardware, "matmul_gflops": peak / 1e9, "results": results}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements per number (default: %(default)s)")
    parser.add_argument("--shapes", type=parse_shape, nargs="+", default=SHAPES, metavar="BxCxHxW")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    return parser.parse_args()


def parse_shape(text: str) -> Shape:
    sizes = [int(size) for size in text.split("x")]
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not four positive sizes BxCxHxW")
    return Shape(*sizes)


def measure(shape: Shape, arguments: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """One row for the forward pass and one for the backward pass with all five gradients."""
    passes = {backend: forward_and_backward(shape, backend) for backend in ("torch", "ext")}
    plan = _host.deform_conv2d_plan(
        shape.batch, shape.channels, (shape.height, shape.width), shape.channels, threads=arguments.threads
    )
    rows = []
    for index, name in enumerate(("forward", "backward")):
        medians = alternate([passes["torch"][index], passes["ext"][index]], arguments.repeats)
        flops = plan[name]["flops"]
        rows.append(
            {
                "input": str(shape),
                "pass": name,
                "torch_ms": 1e3 * medians[0],
                "ext_ms": 1e3 * medians[1],
                "ratio": medians[0] / medians[1],
                "gflops": flops / medians[1] / 1e9,
                "fraction_of_peak": flops / medians[1] / peak,
            }
        )
    return rows


def forward_and_backward(shape: Shape, backend: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    torch.manual_seed(0)
    image = torch.randn(*shape, requires_grad=True)
    offset = (2 * torch.randn(shape.batch, 18, shape.height, shape.width)).requires_grad_()
    mask = torch.rand(shape.batch, 9, shape.height, shape.width, requires_grad=True)
    weight = (torch.randn(shape.channels, shape.channels, 3, 3) / 48).requires_grad_()
    leaves = (image, offset, mask, weight, torch.zeros(shape.channels, requires_grad=True))
    output = deform_conv2d(*leaves, backend=backend)
    cotangent = torch.randn_like(output)

    @torch.no_grad()
    def forward() -> Any:
        return deform_conv2d(*leaves, backend=backend)

    def backward() -> Any:
        return torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    return forward, backward


def alternate(functions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, times in zip(functions, seconds):
            start = time.perf_counter()
            function()
            if repeat > 0:  # the first call warms caches and allocators
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def matmul_peak(repeats: int) -> float:
    """Floating point operations per second of a large float32 matrix product."""
    size = 2048
    matrix, result = torch.randn(size, size), torch.empty(size, size)
    (seconds,) = alternate([lambda: torch.mm(matrix, matrix, out=result)], repeats)
    return 2 * size**3 / seconds


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
