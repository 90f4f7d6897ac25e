"""Runs a CUDA kernel on a tiny problem before it is trusted: on this device, for this dtype, once per process.

The kernels are proven in a simulator. Should a device, a driver or a compiler make one of them fail all the same, the
PyTorch path takes over, and nobody gets wrong numbers. A Hopper's own kernels first make way for those of every device.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Against the largest number of each result: far above what rounding does, far below what a wrong kernel does.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_TILE_POSITIONS = 64  # of the deformable convolution's smallest tile
_Draw = Callable[..., Tensor]
_Problem = Callable[[_Draw, str], "list[Tensor]"]


class _Case(NamedTuple):
    """What is tried: some operators have a kernel of their own for each."""

    op_name: str
    kind: str  # of device
    device_type: str
    dtype: torch.dtype
    tf32: bool
    gradients: bool

    def __str__(self) -> str:
        precision = f"{self.dtype}{' as TF32' if self.tf32 else ''}"
        return f"the {self.op_name} kernel for {precision} on {self.kind}"


def failure(op_name: str, device: str, dtype: torch.dtype, tf32: bool = False, gradients: bool = True) -> str | None:
    """What went wrong when the kernel of `op_name` ran on `device` (as "cuda:0") for the first time, or None.

    `tf32` says that torch allows TF32 at present, `gradients` whether those are tried too.
    """
    index = torch.device(device)
    kind = torch.cuda.get_device_name(index) if index.type == "cuda" else index.type
    return _failure(_Case(op_name, kind, index.type, dtype, tf32 and dtype == torch.float32, gradients))


# Of several devices of one kind the current one answers for all.
@functools.cache
def _failure(case: _Case) -> str | None:
    problem = _trial(case)
    if problem is None or case.op_name != "bi_attention" or not torch.ops.sdpt_ext.allow_hopper_kernels(False):
        return problem
    remaining = _trial(case)
    if remaining is not None:
        # A fault of one kernel makes all later calls of the process fail.
        hint = "; restart with SDPT_EXT_CUDA_CAPABILITY=portable to try the kernels for every GPU"
        return remaining + (hint if "CUDA error" in problem else "")
    warnings.warn(f"sdpt_ext: {problem}; the slower one for every GPU takes its place", RuntimeWarning, stacklevel=2)
    return None


def _trial(case: _Case) -> str | None:
    problem = (case.op_name, case.device_type, case.dtype)
    no_autocast = torch.autocast(case.device_type, enabled=False)
    with torch.inference_mode(False), torch.set_grad_enabled(case.gradients), no_autocast:
        try:
            results = _solve(*problem, "ext")
        except RuntimeError as error:
            return f"{case} does not run ({str(error).splitlines()[0]})"
        expected = _solve(*problem, "torch")
    for got, right in zip(results, expected):
        if got.shape != right.shape or not _close(got, right, _TOLERANCES[case.dtype]):
            return f"{case} gives wrong numbers"
    return None


def _close(got: Tensor, right: Tensor, tolerance: float) -> bool:
    got, right = got.double(), right.double()
    return got.numel() == 0 or bool((got - right).abs().max() <= tolerance * right.abs().max())


def _solve(op_name: str, device_type: str, dtype: torch.dtype, backend: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device_type, dtype)

    return _PROBLEMS[op_name](draw, backend)


def _with_gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    if not torch.is_grad_enabled():
        return [*outputs]
    return [*outputs, *torch.autograd.grad([output.float().sin().sum() for output in outputs], leaves)]


def _bi_attention(draw: _Draw, backend: str) -> list[Tensor]:
    """Every version of the kernels: narrow and wide, for few heads and more, captions of every length with its own."""
    sizes = [(32, 2, 19), *((256, 2, tokens) for tokens in (19, 23, 31, 60, 150)), (256, 5, 19), (256, 5, 31)]
    return [result for size in sizes for result in _bi_attention_of(draw, *size, backend)]


def _bi_attention_of(draw: _Draw, width: int, heads: int, tokens: int, backend: str) -> list[Tensor]:
    from sdpt_ext.ops import bi_attention

    x, prompts = draw(2, 75, width), draw(3, width)
    keys, values = draw(2, heads, tokens, width) / width**0.5, draw(2, heads, tokens, width)
    leaves = [tensor.requires_grad_() for tensor in (x, keys, values, prompts)]
    bias = torch.zeros_like(keys[..., 0]).detach()
    outputs = bi_attention(x, keys, bias, values, prompts, num_text=17, dropout_p=0.1, seed=1, backend=backend)
    return _with_gradients(outputs, leaves)


def _deform_conv2d(draw: _Draw, backend: str) -> list[Tensor]:
    """Every size of tile: half precision takes larger ones where all multiprocessors get their share of positions."""
    number = draw(1)
    sizes = [(24, 20, (9, 10), 3)]
    if number.element_size() == 2:
        count = _multiprocessors(number.device)
        sizes += [(72, 72, (tiles, _TILE_POSITIONS), 1) for tiles in (count // 2 + 1, count + 1)]
    return [result for size in sizes for result in _deform_conv2d_of(draw, *size, backend)]


def _multiprocessors(device: torch.device) -> int:
    # Without a GPU it is a simulated H100.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _deform_conv2d_of(
    draw: _Draw, channels: int, out_channels: int, size: tuple[int, int], kernel: int, backend: str
) -> list[Tensor]:
    from sdpt_ext.ops import deform_conv2d

    taps = kernel**2
    # Offsets a quarter of a pixel off, where half precision cannot move them across a pixel's edge.
    offset = draw(1, 2 * taps, *size).round() + 0.25
    weight = draw(out_channels, channels, kernel, kernel) / 8
    tensors = (draw(1, channels, *size), offset, draw(1, taps, *size), weight, draw(out_channels))
    image, offset, mask, weight, bias = leaves = [tensor.requires_grad_() for tensor in tensors]
    output = deform_conv2d(image, offset, mask, weight, bias, padding=kernel // 2, backend=backend)
    return _with_gradients((output,), leaves)


def _nms(draw: _Draw, backend: str) -> list[Tensor]:
    from sdpt_ext.ops import nms

    corners = 20 * draw(150, 2)
    boxes = torch.cat([corners, corners + 20 * draw(150, 2).abs()], 1)
    labels = (draw(150) > 0).long()
    return [nms(boxes, draw(150), labels, 0.3, backend=backend)]


def _join_prompts(draw: _Draw, backend: str) -> list[Tensor]:
    """Rows of the tokens' own precision and, under autocast, of half of it."""
    tokens, weight, offset = draw(19, 100), draw(40 + 2 * 81, 100) / 10, draw(40 + 2 * 81)
    under_autocast = [torch.bfloat16] if tokens.dtype == torch.float32 else []
    results: list[Tensor] = []
    for dtype in [tokens.dtype, *under_autocast]:
        text = [draw(2, 2, 5, *last).to(dtype) for last in ((40,), (), (40,))]
        results += _joined(text, tokens, weight, offset, backend)
    return results


def _joined(text: list[Tensor], tokens: Tensor, weight: Tensor, offset: Tensor, backend: str) -> list[Tensor]:
    from sdpt_ext.ops import join_prompts

    keys, bias, values, leaf = leaves = [tensor.detach().requires_grad_() for tensor in (*text, tokens)]
    return _with_gradients(join_prompts(keys, bias, values, leaf, weight, offset, backend=backend), leaves)


_PROBLEMS: dict[str, _Problem] = {
    "bi_attention": _bi_attention,
    "deform_conv2d": _deform_conv2d,
    "join_prompts": _join_prompts,
    "nms": _nms,
}
