"""Whether the operators can be compiled here, and for which devices."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

OLDEST_TORCH = (2, 10)


def missing_tool() -> str | None:
    """What prevents compiling the operators, in words, or None."""
    if sys.platform == "win32":
        return "compiling on Windows is not supported"
    return _torch_problem() or _compiler_problem()


def builds_cuda() -> bool:
    """Whether torch has CUDA, or FORCE_CUDA=1 asks for it, and nvcc fits; a line says where it does not."""
    import torch

    if torch.version.cuda is None and os.environ.get("FORCE_CUDA") != "1":
        return False
    problem = _nvcc_problem(torch.version.cuda)
    if problem is not None:
        print(f"sdpt_ext: installing WITHOUT CUDA kernels: {problem}. On GPUs PyTorch will run.", file=sys.stderr)
    return problem is None


def cuda_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST as the user set it, else what the GPUs here need, else what the kernels are written for.

    A Hopper is 9.0a: only that gives a kernel all of its instructions.
    """
    import torch

    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        return chosen
    here = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    if not here:
        return "8.0;8.6;8.9;9.0a;9.0+PTX"
    return ";".join(f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "") for major, minor in sorted(here))


def _torch_problem() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} is older than {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"
    return None


def _nvcc_problem(cuda_of_torch: str | None) -> str | None:
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = shutil.which("nvcc", path=str(Path(CUDA_HOME) / "bin")) if CUDA_HOME else None
    if nvcc is None:
        return f"no nvcc in {CUDA_HOME or 'CUDA_HOME'}"
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release ([\d.]+)", answer)
    if release is None:
        return f"{nvcc} does not tell its version"
    if cuda_of_torch is not None and release[1].split(".")[0] != cuda_of_torch.split(".")[0]:
        return f"{nvcc} is of CUDA {release[1]} and torch of {cuda_of_torch} (set CUDA_HOME to a toolkit that fits)"
    return None


def _compiler_problem() -> str | None:
    compiler = os.environ.get("CXX", "c++").split()
    if shutil.which(compiler[0]) is None:
        return f"no C++ compiler: {compiler[0]} is not on the PATH (set CXX to choose another)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\n#include <vector>\n")
        include = f"-I{sysconfig.get_path('include')}"
        command = [*compiler, "-std=c++17", include, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        message = answer.stderr.strip() or f"exit status {answer.returncode}"
        return f"{compiler[0]} cannot compile a file that includes Python.h: {message.splitlines()[0]}"
    return None
