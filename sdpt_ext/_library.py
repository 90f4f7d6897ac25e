"""Loads the compiled operators once and decides which backend an operator runs on.

Environment:
    SDPT_EXT_BACKEND: "auto" (default), "ext" (compiled, or an error) or "torch" (plain PyTorch).
    SDPT_EXT_LIBRARY: path of a library of operators to load instead of the built one.
"""

from __future__ import annotations

import functools
import os
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

import torch

from sdpt_ext import _self_check

BACKENDS = ("auto", "ext", "torch")
COMPILED_OPERATORS = ("bi_attention", "deform_conv2d", "join_prompts", "nms")
GPU_OPERATORS = ("join_prompts",)
"""Those that save launches, and have no kernel where a launch costs nothing."""
_REBUILD = "reinstall with `pip install .` where torch and a C++ compiler are available"


class MissingKernelError(ImportError, RuntimeError):
    """The compiled operator was asked for and cannot run; the message names the fix."""


class Library(NamedTuple):
    """The compiled operators of this process: `path` when they are loaded, else the `problem` that prevented it."""

    path: Path | None
    problem: str | None


@functools.cache
def library() -> Library:
    """The compiled operators, loaded on the first call."""
    chosen = os.environ.get("SDPT_EXT_LIBRARY")
    if chosen is not None:
        return _load(Path(chosen), f"correct or unset SDPT_EXT_LIBRARY={chosen}")
    folder = Path(__file__).parent
    built = [folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES if (folder / f"_C{suffix}").exists()]
    if not built:
        return Library(None, f"no compiled library in {folder}; to build it, {_REBUILD}")
    return _load(built[0], _REBUILD)


def _load(path: Path, fix: str) -> Library:
    if not path.is_file():
        return Library(None, f"{path} does not exist; {fix}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Library(None, f"{path} does not load ({error.__cause__ or error}); {fix}")
    if not hasattr(torch.ops.sdpt_ext, COMPILED_OPERATORS[0]):
        return Library(None, f"{path} holds no sdpt_ext operators; {fix}")
    return Library(path, None)


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
    known = hasattr(torch.ops.sdpt_ext, op_name)
    if not known or not torch._C._dispatch_has_kernel_for_dispatch_key(f"sdpt_ext::{op_name}", key):
        fix = "; reinstall with nvcc of torch's CUDA version in CUDA_HOME" if device_type == "cuda" else ""
        return f"{loaded.path.name} holds no {op_name} kernel for {device_type}{fix}"
    return None


def has_kernel(op_name: str, device_type: str) -> bool:
    """Whether the compiled operator can run on this kind of device."""
    return missing_kernel(op_name, device_type) is None


def must_run_compiled(asked: str) -> bool:
    """Whether falling back to PyTorch would go against the user's word."""
    return asked == "ext" or (library().path is None and "SDPT_EXT_LIBRARY" in os.environ)


def runs_cuda_kernels(device_type: str) -> bool:
    """Whether the kernels of csrc/cuda serve this kind of device; a simulator runs them on the CPU."""
    return library().path is not None and hasattr(torch.ops.sdpt_ext, f"cuda_kernels_on_{device_type.upper()}")


def tf32_allowed(device_type: str) -> bool:
    """Whether CUDA kernels may multiply float32 as TF32 on such a device: where torch's own products may."""
    return runs_cuda_kernels(device_type) and torch.backends.cuda.matmul.fp32_precision == "tf32"


def resolve_backend(
    op_name: str, backend: str, tensor: torch.Tensor, dtype: torch.dtype | None = None, gradients: bool = True
) -> str:
    """What runs operator `op_name` on such tensors: "ext" or "torch".

    Args:
        dtype: that it computes in (default: the tensor's).
        gradients: whether they will be asked for; a GPU may have room for the kernel of the forward pass alone.

    Raises:
        MissingKernelError: the compiled operator was asked for and cannot run.
    """
    return _resolve_for_device(op_name, backend, str(tensor.device), dtype or tensor.dtype, gradients)


def _resolve_for_device(op_name: str, backend: str, device: str, dtype: torch.dtype, gradients: bool) -> str:
    asked = requested_backend(backend)
    if asked == "torch":
        if backend == "auto":
            _warn_once("SDPT_EXT_BACKEND=torch asks for it; unset the variable to use the compiled operators")
        return "torch"
    device_type = torch.device(device).type
    problem = missing_kernel(op_name, device_type)
    if problem is None and asked == "auto" and runs_cuda_kernels(device_type):
        problem = _self_check.failure(op_name, device, dtype, tf32_allowed(device_type), gradients)
    if problem is None:
        return "ext"
    if must_run_compiled(asked):
        raise MissingKernelError(
            f"sdpt_ext: the compiled {op_name} was asked for, but {problem}; backend 'torch' runs anywhere"
        )
    _warn_once(problem)
    return "torch"


# What torch.compiler.assume_constant_result does, without importing the compiler: a compiled program takes the answer
# of the time when it was compiled, and the files and variables that it depends on are no part of the program.
tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]
has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]
runs_cuda_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]
_resolve_for_device._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"sdpt_ext: running the slower PyTorch path: {reason}", RuntimeWarning, stacklevel=5)
