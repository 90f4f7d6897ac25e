"""What the machine is and how fast it multiplies matrices: the limit that benchmarks hold their numbers against."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from timing import seconds_of


def hardware(threads: int, device: str = "cpu") -> str:
    """One line that names the processor, the threads in use and torch."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name()
    return f"{name}, {threads} threads, torch {torch.__version__}"


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def matmul_peak(dtype: torch.dtype = torch.float32, device: str = "cpu", repeats: int = 7) -> float:
    """Floating point operations per second of a large matrix product, the fastest of a few."""
    size = 8192 if device.startswith("cuda") else 2048
    matrix = torch.randn(size, size, device=device).to(dtype)
    result = torch.empty_like(matrix)
    seconds = [seconds_of(lambda: torch.mm(matrix, matrix, out=result), device) for _ in range(repeats + 1)]
    return 2 * size**3 / min(seconds[1:])
