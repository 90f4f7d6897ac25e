"""Which backends the tests of an operator visit."""

from __future__ import annotations

import os

import pytest
import torch

from sdpt_ext import _library

DEVICE = os.environ.get("SDPT_EXT_TEST_DEVICE", "cpu")
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)

needs_library = pytest.mark.skipif(_library.library().path is None, reason="the operators are not compiled here")
# CUDA kernels in a simulator: sizes must stay small, and the PyTorch path has been tested elsewhere.
SIMULATED = _library.runs_cuda_kernels("cpu")
BACKENDS = ["ext"] if SIMULATED else ["torch", pytest.param("ext", marks=needs_library)]
