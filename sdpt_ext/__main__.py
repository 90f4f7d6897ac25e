"""`python -m sdpt_ext`: versions, what was compiled, which backend each operator uses and why, devices."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import torch

from sdpt_ext import __version__, _library, _self_check
from sdpt_ext.cli import command
from sdpt_ext.ops import __all__ as operators

_CHECKED = (torch.float32, torch.bfloat16)
_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "pycocotools", "numpy")


@command
def main() -> None:
    for title, rows in (
        ("versions", _versions()),
        ("compiled", _compiled()),
        ("operators", _operators()),
        ("devices", _devices()),
    ):
        print(title)
        for name, value in rows:
            print(f"  {name:<22}{value}")


def _versions() -> Iterator[tuple[str, str]]:
    yield "sdpt_ext", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"


def _compiled() -> Iterator[tuple[str, str]]:
    loaded = _library.library()
    yield "library", str(loaded.path) if loaded.path else f"none: {loaded.problem}"
    try:
        from sdpt_ext import _host
    except ImportError as error:
        yield "host module", f"none: {error}"
        return
    for name, value in _host.build_info().items():
        yield name.replace("_", " "), value or "none"


def _operators() -> Iterator[tuple[str, str]]:
    device_types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for operator in operators:
        for device_type in device_types:
            yield f"{operator} ({device_type})", _explain(operator, device_type)


def _explain(operator: str, device_type: str) -> str:
    if operator not in _library.COMPILED_OPERATORS:
        return "torch: it has no compiled kernel"
    if operator in _library.GPU_OPERATORS and not _library.has_kernel(operator, device_type):
        return "torch: it has a kernel for GPUs alone"
    asked = _library.requested_backend()
    if asked == "torch":
        return "torch: SDPT_EXT_BACKEND=torch asks for it"
    problem = _library.missing_kernel(operator, device_type)
    if problem is None and not _library.runs_cuda_kernels(device_type):
        return "ext: compiled kernel"
    problem = problem or _first_failure(operator, device_type, gradients=False)
    if problem is None:
        training = _first_failure(operator, device_type, gradients=True)
        checked = f"ext: CUDA kernel, right on first use in {' and '.join(map(str, _CHECKED))}"
        return checked if training is None else f"{checked}; with gradients torch: {training}"
    return f"{'error' if _library.must_run_compiled(asked) else 'torch'}: {problem}"


def _first_failure(operator: str, device_type: str, gradients: bool) -> str | None:
    problems = (_self_check.failure(operator, device_type, dtype, gradients=gradients) for dtype in _CHECKED)
    return next((problem for problem in problems if problem is not None), None)


def _devices() -> Iterator[tuple[str, str]]:
    yield "cpu", f"{torch.get_num_threads()} threads, torch uses {torch.backends.cpu.get_cpu_capability()}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield "cuda", "none"


if __name__ == "__main__":
    main()
