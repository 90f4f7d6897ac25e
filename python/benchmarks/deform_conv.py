"""Time of the compiled deformable convolution against its plain PyTorch reference, forward and backward.

Both are measured in one run, alternating, so that a busy machine slows them alike. Floors come from the kernel plan:
the floating point operations that the definition needs, at the speed of a large matrix product measured in the
same run.

    python python/benchmarks/deform_conv.py --json deform_conv.json
    python python/benchmarks/deform_conv.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from arguments import benchmark_parser
from machine import hardware, matmul_peak
from report import Column, print_header, print_row, write_json
from timing import alternate

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


COLUMNS = (
    Column("input", 15),
    Column("pass", 9),
    Column("torch_ms", 9, ".1f"),
    Column("ext_ms", 9, ".1f"),
    Column("ratio", 6, ".1f"),
    Column("gflops", 7, ".0f"),
    Column("of_peak", 8, ".0%"),
)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    machine = hardware(arguments.threads, arguments.device)
    peak = matmul_peak(getattr(torch, arguments.dtype), arguments.device, repeats=arguments.repeats)
    print(f"{machine}\nmatrix product: {peak / 1e9:.0f} GFLOP/s")
    print_header(COLUMNS)
    results = []
    for shape in arguments.shapes:
        for row in measure(shape, arguments, peak):
            print_row(COLUMNS, row)
            results.append(row)
    write_json(arguments.json, hardware=machine, matmul_gflops=peak / 1e9, results=results)


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--shapes", type=parse_shape, nargs="+", default=SHAPES, metavar="BxCxHxW")
    return parser.parse_args()


def parse_shape(text: str) -> Shape:
    sizes = [int(size) for size in text.split("x")]
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not four positive sizes BxCxHxW")
    return Shape(*sizes)


def measure(shape: Shape, arguments: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """One row for the forward pass and one for the backward pass with all five gradients."""
    passes = {backend: forward_and_backward(shape, backend, arguments) for backend in ("torch", "ext")}
    plan = _host.deform_conv2d_plan(
        shape.batch, shape.channels, (shape.height, shape.width), shape.channels, threads=arguments.threads
    )
    rows = []
    for index, name in enumerate(("forward", "backward")):
        medians = alternate([passes["torch"][index], passes["ext"][index]], arguments.repeats, device=arguments.device)
        flops = plan[name]["flops"]
        rows.append(
            {
                "input": str(shape),
                "pass": name,
                "torch_ms": 1e3 * medians[0],
                "ext_ms": 1e3 * medians[1],
                "ratio": medians[0] / medians[1],
                "gflops": flops / medians[1] / 1e9,
                "of_peak": flops / medians[1] / peak,
            }
        )
    return rows


def forward_and_backward(
    shape: Shape, backend: str, arguments: argparse.Namespace
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def leaf(value: torch.Tensor) -> torch.Tensor:
        return value.to(arguments.device, getattr(torch, arguments.dtype)).requires_grad_()

    torch.manual_seed(0)
    image = leaf(torch.randn(*shape))
    offset = leaf(2 * torch.randn(shape.batch, 18, shape.height, shape.width))
    mask = leaf(torch.rand(shape.batch, 9, shape.height, shape.width))
    weight = leaf(torch.randn(shape.channels, shape.channels, 3, 3) / 48)
    leaves = (image, offset, mask, weight, leaf(torch.zeros(shape.channels)))
    output = deform_conv2d(*leaves, backend=backend)
    cotangent = torch.randn_like(output)

    @torch.no_grad()
    def forward() -> Any:
        return deform_conv2d(*leaves, backend=backend)

    def backward() -> Any:
        return torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    return forward, backward


if __name__ == "__main__":
    main()
