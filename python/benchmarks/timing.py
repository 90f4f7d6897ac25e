"""Wall-clock time of functions that a busy machine must slow alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_CALLS_ON_GPU = 20


def alternate(
    functions: Sequence[Callable[[], Any]], repeats: int, budget: float = float("inf"), device: str = "cpu"
) -> list[float]:
    """Median seconds of each function, called in turn.

    Args:
        repeats: measured rounds, after one that warms caches and allocators.
        budget: no new round starts once the measured ones have taken this many seconds; one always runs.
        device: where the functions compute; a clock is read when it has finished.
    """
    for function in functions:
        seconds_of(function, device)
    rounds: list[list[float]] = []
    while len(rounds) < repeats and (not rounds or sum(map(sum, rounds)) < budget):
        rounds.append([seconds_of(function, device) for function in functions])
    return [statistics.median(times) for times in zip(*rounds)]


def seconds_of(function: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one call; on a GPU of one among several, whose launches overlap with the work before them."""
    calls = _CALLS_ON_GPU if device.startswith("cuda") else 1
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronise(device)
    return (time.perf_counter() - start) / calls


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
