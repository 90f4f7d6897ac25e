"""What only the CUDA kernels of bi_attention have: tiles, work that blocks share, and devices with less shared memory.

The tests of test_bi_attention.py run on them as well; see tests/cudasim.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .backends import DEVICE, needs_library
from .test_bi_attention import ours, tensors, textbook, with_gradients

pytestmark = [
    needs_library,
    pytest.mark.skipif(DEVICE == "cpu" and "cudasim" not in sys.modules, reason="needs a GPU or the simulator"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Every tile has an edge inside: 32, 96 and 288 tokens (a Hopper's: 16, 20, 32, 48 and 144), 32, 48, 64, 96 and 128
# rows, 64 and 256 columns; and 4 and 8 heads of a Hopper's tiles.
SIZES: dict[str, dict[str, int]] = {
    "one of each": {"batch": 1, "positions": 1, "heads": 1, "tokens": 1, "width": 8, "prompts": 0},
    "past every small tile": {"batch": 2, "positions": 65, "heads": 2, "tokens": 33, "width": 72, "prompts": 33},
    "past the middle chunk": {"batch": 1, "positions": 64, "heads": 1, "tokens": 97, "width": 64, "prompts": 1},
    "past the large chunk": {"batch": 1, "positions": 31, "heads": 2, "tokens": 290, "width": 16, "prompts": 0},
    "blocks share tiles": {"batch": 1, "positions": 130, "heads": 3, "tokens": 35, "width": 64, "prompts": 2},
    "past the tiles of a Hopper": {"batch": 2, "positions": 129, "heads": 2, "tokens": 9, "width": 72, "prompts": 2},
    "past its smaller chunks": {"batch": 1, "positions": 97, "heads": 3, "tokens": 145, "width": 256, "prompts": 97},
    "past its heads": {"batch": 1, "positions": 49, "heads": 9, "tokens": 5, "width": 72, "prompts": 1},
    "all heads at once": {"batch": 2, "positions": 129, "heads": 8, "tokens": 20, "width": 72, "prompts": 1},
    "in two chunks": {"batch": 2, "positions": 65, "heads": 7, "tokens": 31, "width": 72, "prompts": 0},
    "fewer heads": {"batch": 1, "positions": 65, "heads": 3, "tokens": 23, "width": 256, "prompts": 1},
    "prompts alone": {"batch": 2, "positions": 0, "heads": 2, "tokens": 3, "width": 64, "prompts": 3},
}
EVERYTHING: dict[str, Any] = {"dropout_p": 0.2, "seed": 2**40 + 3}


def inputs_of(dtype: torch.dtype, sizes: dict[str, int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inputs, and options that leave no part of the kernels out."""
    seen = torch.arange(sizes["batch"] * sizes["positions"]) % 3 > 0
    mask = seen.view(sizes["batch"], sizes["positions"])
    return tensors(dtype, **sizes), {**EVERYTHING, "image_mask": mask, "num_text": (sizes["tokens"] + 1) // 2}


class Tf32Products(TorchDispatchMode):
    """Rounds what matrix products multiply to the 11 digits of TF32."""

    PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.PRODUCTS:
            args = [self.rounded(arg) for arg in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(value: Tensor) -> Tensor:
        if value.dtype != torch.float32:
            return value
        return ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def tf32_allowed() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def assert_no_worse_than_plain(inputs: dict[str, Tensor], options: dict[str, Any]) -> None:
    dtype = inputs["x"].dtype
    exact = with_gradients(textbook, {name: value.double() for name, value in inputs.items()}, **options)
    plain = with_gradients(textbook, inputs, **options)
    for value, rough, reference in zip(with_gradients(ours_compiled, inputs, **options), plain, exact):
        if value.numel():
            steps = 20 if dtype == torch.float32 else 1
            allowed = 2 * (rough - reference).abs().max() + steps * torch.finfo(dtype).eps * reference.abs().max()
            assert (value - reference).abs().max() <= allowed


def ours_compiled(**arguments: Any) -> tuple[Tensor, ...]:
    return ours("ext", **arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_edges_of_tiles(dtype: torch.dtype, sizes: dict[str, int]) -> None:
    assert_no_worse_than_plain(*inputs_of(dtype, sizes))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_tf32(sizes: dict[str, int]) -> None:
    inputs, options = inputs_of(torch.float32, sizes)
    exact = with_gradients(textbook, {name: value.double() for name, value in inputs.items()}, **options)
    with Tf32Products():
        plain = with_gradients(textbook, inputs, **options)
    with tf32_allowed():
        rounded = with_gradients(ours_compiled, inputs, **options)
    for value, rough, reference in zip(rounded, plain, exact):
        if value.numel():
            allowed = 2 * (rough - reference).abs().max() + 2**-11 * reference.abs().max()
            assert (value - reference).abs().max() <= allowed


def test_tf32_only_where_torch_allows_it() -> None:
    inputs, options = inputs_of(torch.float32, SIZES["blocks share tiles"])
    full = with_gradients(ours_compiled, inputs, **options)
    with tf32_allowed():
        rounded = with_gradients(ours_compiled, inputs, **options)
    assert all(not torch.equal(a, b) for a, b in zip(full, rounded))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kilobytes", [99, 163])
def test_devices_with_less_shared_memory(dtype: torch.dtype, kilobytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDPT_EXT_SHARED_MEMORY", str(kilobytes * 1024))
    width = 256 if dtype == torch.bfloat16 else 64
    sizes = {"batch": 1, "positions": 70, "heads": 2, "tokens": 100, "width": width, "prompts": 3}
    assert_no_worse_than_plain(*inputs_of(dtype, sizes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_every_time(dtype: torch.dtype) -> None:
    inputs, options = inputs_of(dtype, SIZES["blocks share tiles"])
    first, second = (with_gradients(ours_compiled, inputs, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_views_that_start_anywhere() -> None:
    inputs, options = inputs_of(torch.bfloat16, SIZES["blocks share tiles"])

    def shifted(value: Tensor) -> Tensor:
        return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)

    moved = {name: shifted(value) for name, value in inputs.items()}
    assert moved["x"].data_ptr() % 16 != 0
    for value, expected in zip(ours_compiled(**moved, **options), ours_compiled(**inputs, **options)):
        assert torch.equal(value, expected)


def test_too_wide_is_named() -> None:
    inputs, _ = inputs_of(torch.bfloat16, {**SIZES["one of each"], "width": 264})
    with pytest.raises(RuntimeError, match="at most 256, got 264"):
        ours_compiled(**inputs)
