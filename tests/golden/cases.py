"""Reading and comparing the golden cases: numbers that the official GLIP and SDPT code computed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import fill

FOLDER = Path(os.environ.get("SDPT_ORACLE", Path(__file__).parent))


def load(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """-> (description, arrays) of a case."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    return json.loads(str(arrays.pop("meta"))), arrays


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype, copy=True)


def inputs(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return tensor(fill.inputs(name, shape, scale), dtype)


def cotangent(name: str, like: Tensor) -> Tensor:
    return tensor(fill.grads(name, tuple(like.shape)), like.dtype)


def fill_parameters(module: nn.Module, prefix: str) -> None:
    """Give every parameter of a module with official names the value its name stands for."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(fill.fill(prefix + name, tuple(parameter.shape))))


def text_mask(real_tokens: list[int], length: int) -> Tensor:
    return (torch.arange(length)[None] < torch.tensor(real_tokens)[:, None]).long()


def sampled(actual: Tensor, arrays: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The stored positions of ``actual`` and their expected values, both flat."""
    expected = arrays[name].reshape(-1)
    shape = tuple(arrays[f"{name}__shape"])
    assert tuple(actual.shape) == shape, f"{name}: shape {tuple(actual.shape)}, expected {shape}"
    flat = actual.detach().reshape(-1).double().numpy()
    return flat[fill.sample_index(flat.size, expected.size)], expected.astype(np.float64)


def relative_error(actual: Tensor, arrays: dict[str, np.ndarray], name: str) -> float:
    """Largest difference relative to the largest magnitude of the full array."""
    got, expected = sampled(actual, arrays, name)
    return float(np.abs(got - expected).max() / arrays[f"{name}__stat"][2])


def relative_l2(actual: Tensor, arrays: dict[str, np.ndarray], name: str) -> float:
    got, expected = sampled(actual, arrays, name)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def assert_close(actual: Tensor, arrays: dict[str, np.ndarray], name: str, tolerance: float) -> None:
    error = relative_error(actual, arrays, name)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"
