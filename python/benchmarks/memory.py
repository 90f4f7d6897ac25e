"""Peak memory of one call, measured where nothing else runs."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_extra_bytes(build: Callable[..., Callable[[], Any]], *arguments: Any, device: str = "cpu") -> int:
    """Most memory that a call of ``build(*arguments)`` holds at once beyond what was there before the call.

    It runs in a fresh process, once to warm up and once to be measured. Linux only, unless the device is a GPU.
    `build` must be importable there by its name.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([build.__module__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, build, arguments, device))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process that measured {build.__name__}{arguments} died") from None
    finally:
        child.join()


def _measure(sender: Any, build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], device: str) -> None:
    function = build(*arguments)
    function()
    sender.send(_on_gpu(function, device) if device.startswith("cuda") else _on_cpu(function))


def _on_gpu(function: Callable[[], Any], device: str) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(function: Callable[[], Any]) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # what the warm-up freed goes back first, or it would hide what this call takes
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    function()
    return max(0, _resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return 1024 * int(found[1])
