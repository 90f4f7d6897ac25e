"""The fusion layer of GLIP and of Grounding DINO: the compiled operator against everything else that could run it.

Contenders that start with "gdino" are compared with HF's GroundingDinoBiMultiHeadAttention, all others with the eager
GLIP block. Those called eager see captions padded to 256 tokens, as GLIP feeds them; the others see real tokens alone.
A row's share of the matmul peak counts the operations that the folded algebra needs, whatever the contender computes.
Contenders of a case are called in turn, so that a busy machine slows them alike; the peak of the memory that a step
takes beyond its inputs is measured in a fresh process each.

    python python/benchmarks/fusion.py                           the largest image, in about two minutes
    python python/benchmarks/fusion.py --all --json fusion.json  every size and contender: hours on a small CPU
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from arguments import benchmark_parser
from fusion_blocks import CONTENDERS, Case, Unavailable, build, needed_flops
from machine import hardware, matmul_peak
from memory import peak_extra_bytes
from report import Column, print_header, print_row, write_json
from timing import alternate

POSITIONS = (5577, 22300)  # 400x667 and 800x1333 pixels
TOKENS = (8, 20, 64, 256)
PROMPTS = (0, 10)
DTYPES = ("float32", "bfloat16")
PASSES = ("forward", "forward+backward")
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "positions": (22300,),
    "tokens": (20, 256),
    "prompts": (0,),
    "dtypes": ("float32",),
    "passes": PASSES,
    "contenders": ("ext", "torch", "eager", "textbook", "sdpa"),
}
EVERYTHING: dict[str, tuple[Any, ...]] = {
    "positions": POSITIONS,
    "tokens": TOKENS,
    "prompts": PROMPTS,
    "dtypes": DTYPES,
    "passes": PASSES,
    "contenders": tuple(CONTENDERS),
}
COLUMNS = (
    Column("positions", 9),
    Column("tokens", 6),
    Column("prompts", 7),
    Column("dtype", 8),
    Column("pass", 16),
    Column("contender", 17),
    Column("ms", 9, ".1f"),
    Column("speedup", 7, ".2f"),
    Column("of_peak", 7, ".0%"),
    Column("peak_mb", 8, ".1f"),
)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    machine = hardware(arguments.threads, arguments.device)
    peaks = {name: matmul_peak(getattr(torch, name), arguments.device) for name in arguments.dtypes}
    print(machine, *(f"{name} matrix product: {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()), sep="\n")
    print_header(COLUMNS)
    results = []
    for case in cases(arguments):
        for row in measure(case, arguments, peaks[case.dtype]):
            print_row(COLUMNS, row)
            results.append(row)
    gflops = {name: peak / 1e9 for name, peak in peaks.items()}
    write_json(arguments.json, hardware=machine, matmul_gflops=gflops, results=results)


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--all", action="store_true", help="everything that is not chosen otherwise")
    for name in ("positions", "tokens", "prompts"):
        parser.add_argument(
            f"--{name}", type=int, nargs="+", help=f"default: {DEFAULTS[name]}; all: {EVERYTHING[name]}"
        )
    for name in ("dtypes", "passes", "contenders"):
        choices = EVERYTHING[name]
        parser.add_argument(f"--{name}", nargs="+", choices=choices, help=f"default: {', '.join(DEFAULTS[name])}")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--budget",
        type=float,
        default=10.0,
        help="seconds per case after which no repeat starts (default: %(default)s)",
    )
    parser.add_argument("--no_memory", action="store_true", help="do not measure memory")
    arguments = parser.parse_args()
    for name, values in (EVERYTHING if arguments.all else DEFAULTS).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, values)
    return arguments


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    names = ("positions", "tokens", "prompts", "dtypes", "passes")
    for positions, tokens, prompts, dtype, name in itertools.product(*(getattr(arguments, key) for key in names)):
        yield Case(positions, tokens, prompts, dtype, name != "forward", arguments.device, arguments.threads)


def measure(case: Case, arguments: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """One row per contender that can run the case."""
    steps = dict(available_steps(case, arguments.contenders))
    medians = dict(zip(steps, alternate(list(steps.values()), arguments.repeats, arguments.budget, case.device)))
    rows = []
    for name, seconds in medians.items():
        baseline = medians.get("gdino-hf" if name.startswith("gdino") else "eager")
        extra = None if arguments.no_memory else peak_extra_bytes(build, name, case, device=case.device)
        rows.append(
            {
                "positions": case.positions,
                "tokens": case.tokens,
                "prompts": case.prompts,
                "dtype": case.dtype,
                "pass": PASSES[case.backward],
                "contender": name,
                "ms": 1e3 * seconds,
                "speedup": None if baseline is None else baseline / seconds,
                "of_peak": needed_flops(name, case) / seconds / peak,
                "peak_mb": None if extra is None else extra / 1e6,
            }
        )
    return rows


def available_steps(case: Case, contenders: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in contenders:
        try:
            yield name, build(name, case)
        except Unavailable as problem:
            print(f"{name} is left out: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
