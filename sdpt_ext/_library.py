"""Loads the compiled operators once and decides which backend an operator runs on.

Environment:
    SDPT_EXT_BACKEND: "auto" (default), "ext" (compiled, or an error) or "torch" (plain PyTorch).
    SDPT_EXT_LIBRARY: path of a library of operators to load instead of the built one.
"""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

BACKENDS = ("auto", "ext", "torch")
_REBUILD = "reinstall with `pip install .` where torch and a C++ compiler are available"


class Library(NamedTuple):
    """The compiled operators of this process: `path` when they are loaded, else the `problem` that prevented it."""

    path: Path | None
    problem: str | None


@functools.cache
def library() -> Library:
    """Load the compiled operators on the first call.

    Raises:
        FileNotFoundError: SDPT_EXT_LIBRARY names a file that does not exist.
        OSError: SDPT_EXT_LIBRARY names a file that is not a library of these operators.
    """
    chosen = os.environ.get("SDPT_EXT_LIBRARY")
    if chosen:
        return Library(_load_chosen(Path(chosen)), None)
    built = sorted(Path(__file__).parent.glob("_C.*"))
    if not built:
        return Library(None, f"no compiled library in {Path(__file__).parent}; to build it, {_REBUILD}")
    try:
        torch.ops.load_library(str(built[0]))
    except OSError as error:
        return Library(None, f"{built[0]} does not load ({error}); {_REBUILD}")
    return Library(built[0], None)


def _load_chosen(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"SDPT_EXT_LIBRARY={path}: no such file; correct the path or unset SDPT_EXT_LIBRARY")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise OSError(f"SDPT_EXT_LIBRARY={path} does not load: {error}") from error
    if not hasattr(torch.ops.sdpt_ext, "deform_conv2d"):
        raise OSError(f"SDPT_EXT_LIBRARY={path} holds no sdpt_ext operators; build it from csrc/ or unset the variable")
    return path


def requested_backend(backend: str = "auto") -> str:
    """The backend asked for: the argument, or SDPT_EXT_BACKEND where the argument is "auto"."""
    asked = os.environ.get("SDPT_EXT_BACKEND", "auto") if backend == "auto" else backend
    if asked not in BACKENDS:
        source = "SDPT_EXT_BACKEND" if backend == "auto" else "backend"
        raise ValueError(f"{source}={asked!r}: choose one of {', '.join(BACKENDS)}")
    return asked


def missing_kernel(op_name: str, device_type: str) -> str | None:
    """Why the compiled operator cannot run on this kind of device, or None if it can."""
    loaded = library()
    if loaded.path is None:
        return loaded.problem
    key = torch._C._dispatch_key_for_device(device_type)
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sdpt_ext::{op_name}", key):
        return f"{loaded.path.name} has no {op_name} kernel for {device_type}; move the tensors to a CPU to use it"
    return None


def resolve_backend(op_name: str, backend: str, *tensors: torch.Tensor) -> str:
    """What runs operator `op_name` on these tensors: "ext" or "torch".

    Raises:
        RuntimeError: the compiled operator was asked for and cannot run; the message names the fix.
    """
    asked = requested_backend(backend)
    if asked == "torch":
        if backend == "auto":
            _warn_once("SDPT_EXT_BACKEND=torch asks for it; unset the variable to use the compiled operators")
        return "torch"
    problem = missing_kernel(op_name, tensors[0].device.type)
    if problem is None:
        return "ext"
    if asked == "ext":
        raise RuntimeError(f"sdpt_ext: the compiled {op_name} was asked for, but {problem}")
    _warn_once(problem)
    return "torch"


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"sdpt_ext: running the slower PyTorch path: {reason}", RuntimeWarning, stacklevel=4)
