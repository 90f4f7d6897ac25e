"""Which backends the tests of an operator visit."""

from __future__ import annotations

import pytest

from sdpt_ext import _library

needs_library = pytest.mark.skipif(_library.library().path is None, reason="the operators are not compiled here")
# CUDA kernels in a simulator: sizes must stay small, and the PyTorch path has been tested elsewhere.
SIMULATED = _library.runs_cuda_kernels("cpu")
BACKENDS = ["ext"] if SIMULATED else ["torch", pytest.param("ext", marks=needs_library)]
