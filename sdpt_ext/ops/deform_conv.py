"""Modulated deformable convolution (Zhu et al., "Deformable ConvNets v2", CVPR 2019) as GLIP uses it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpt_ext import _library

Pair = tuple[int, int]
_HALVES = {torch.float16, torch.bfloat16}


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 1,
    backend: str = "auto",
) -> Tensor:
    """Convolve `input`, sampled bilinearly at positions shifted by `offset` and scaled by `mask`.

    Tap k = kernel_w * ky + kx of output position (oy, ox) reads the image at
    y = oy * stride - padding + ky + offset[2k], x = ox * stride - padding + kx + offset[2k + 1];
    pixels outside the image count as zero.

    The offsets of a sample are read flat, as (2 * taps, out_h, out_w), and its mask as (taps, out_h, out_w), whatever
    their own spatial size. GLIP feeds one offset map to branches of several sizes, and its trained weights contain
    that behaviour. Where the sizes agree this is the ordinary operator.

    Runs in float32 under autocast and for half precision inputs; float64 stays float64. Only where the CUDA kernels
    get nothing but half precision of one kind do they multiply it on tensor cores, with sums in float32; the sampled
    columns are rounded to it first, so that errors stay within twice those of rounding the exact result.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * taps, h, w) in pixels, h * w at least out_h * out_w.
        mask: (B, taps, h, w) modulation, or None for 1 everywhere.
        weight: (O, C, kernel_h, kernel_w).
        bias: (O,) or None.
        stride: step between output positions, one number or (vertical, horizontal).
        padding: pixels of zero padding, one number or (vertical, horizontal).
        backend: "auto", "ext" (compiled) or "torch" (plain PyTorch).

    Returns:
        (B, O, out_h, out_w), contiguous for a contiguous `input`; else the compiled operator leaves it channels last.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        MissingKernelError: the compiled operator was asked for and cannot run; it is a RuntimeError.
    """
    steps, pads = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    _check(input, offset, mask, weight, bias, steps, pads)
    device_type = input.device.type
    autocast = torch.is_autocast_enabled(device_type)
    compute_dtype = _full_precision(input)
    result_dtype = compute_dtype if autocast else input.dtype
    kernel_dtype = compute_dtype if autocast else _kernel_dtype(input, offset, mask, weight, bias)
    chosen = _library.resolve_backend("deform_conv2d", backend, input, kernel_dtype)
    implementation = {"ext": _compiled, "torch": deform_conv2d_reference}[chosen]
    compute_dtype = kernel_dtype if chosen == "ext" else compute_dtype
    with torch.autocast(device_type, enabled=False):
        output = implementation(
            input.to(compute_dtype),
            offset.to(compute_dtype),
            None if mask is None else mask.to(compute_dtype),
            weight.to(compute_dtype),
            None if bias is None else bias.to(compute_dtype),
            steps,
            pads,
        )
    return output.to(result_dtype)


def _kernel_dtype(input: Tensor, *others: Tensor | None) -> torch.dtype:
    """What the compiled kernel is to compute in."""
    of_one_kind = all(other is None or other.dtype == input.dtype for other in others)
    if input.dtype in _HALVES and of_one_kind and _library.runs_cuda_kernels(input.device.type):
        return input.dtype
    return _full_precision(input)


def _full_precision(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def deform_conv2d_reference(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> Tensor:
    """The same operator in plain PyTorch; arguments as for `deform_conv2d`, all of one dtype."""
    batch, out_channels, taps = input.shape[0], weight.shape[0], weight.shape[2] * weight.shape[3]
    out_h, out_w = _output_size(input, weight, stride, padding)
    y, x = _sample_positions(offset, weight.shape[2:], (out_h, out_w), stride, padding)
    columns = _sample_bilinear(input, y, x)
    if mask is not None:
        columns = columns * _read_flat(mask, taps, out_h, out_w).unsqueeze(1)
    output = weight.flatten(1) @ columns.flatten(1, 2)
    if bias is not None:
        output = output + bias[:, None]
    return output.view(batch, out_channels, out_h, out_w)


def _read_flat(field: Tensor, channels: int, out_h: int, out_w: int) -> Tensor:
    """First numbers of each sample's memory as (B, channels, out_h * out_w)."""
    plane = out_h * out_w
    return field.flatten(1)[:, : channels * plane].unflatten(1, (channels, plane))


def _sample_positions(
    offset: Tensor, kernel: torch.Size, out_size: Pair, stride: Pair, padding: Pair
) -> tuple[Tensor, Tensor]:
    """Coordinates (B, taps, out_h * out_w), vertical and horizontal, in pixels of the input."""
    taps = kernel[0] * kernel[1]
    shift = _read_flat(offset, 2 * taps, *out_size).unflatten(1, (taps, 2))

    def grid(axis: int) -> Tensor:
        start = torch.arange(out_size[axis], device=offset.device) * stride[axis] - padding[axis]
        return start + torch.arange(kernel[axis], device=offset.device)[:, None]

    rows = grid(0)[:, None, :, None].expand(*kernel, *out_size).reshape(taps, -1)
    columns = grid(1)[None, :, None, :].expand(*kernel, *out_size).reshape(taps, -1)
    return rows + shift[:, :, 0], columns + shift[:, :, 1]


def _sample_bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values (B, C, taps, positions) of `image` (B, C, H, W) at y, x (B, taps, positions); zero outside."""
    height, width = image.shape[2:]
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    # A frame of zeros gives every neighbour outside the image its value; -1 is a place on it.
    framed = F.pad(image, (1, 1, 1, 1)).flatten(2)
    y = torch.where(inside, y, -1.0)
    x = torch.where(inside, x, -1.0)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left

    def neighbour(lower: int, further: int) -> Tensor:
        index = ((top.long() + 1 + lower) * (width + 2) + left.long() + 1 + further).flatten(1)
        values = framed.gather(2, index[:, None].expand(-1, framed.shape[1], -1))
        return values.unflatten(2, y.shape[1:])

    def weigh(row_weight: Tensor, column_weight: Tensor, values: Tensor) -> Tensor:
        return (row_weight * column_weight).unsqueeze(1) * values

    return (
        weigh(1 - down, 1 - right, neighbour(0, 0))
        + weigh(1 - down, right, neighbour(0, 1))
        + weigh(down, 1 - right, neighbour(1, 0))
        + weigh(down, right, neighbour(1, 1))
    )


def _compiled(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> Tensor:
    output = torch.ops.sdpt_ext.deform_conv2d(input, offset, mask, weight, bias, stride, padding)
    return output.contiguous() if input.is_contiguous() else output


def _pair(value: int | Pair, name: str, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(number, int) and number >= least for number in pair):
        raise ValueError(f"deform_conv2d: {name}={value!r} must be one or two integers of at least {least}")
    return pair


def _output_size(input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    def along(axis: int) -> int:
        span = input.shape[2 + axis] + 2 * padding[axis] - weight.shape[2 + axis]
        return 0 if span < 0 else span // stride[axis] + 1

    return along(0), along(1)


def _check(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> None:
    if input.dim() != 4 or weight.dim() != 4:
        raise ValueError(f"deform_conv2d: input {_shape(input)} and weight {_shape(weight)} must have 4 dimensions")
    if input.shape[1] != weight.shape[1]:
        raise ValueError(f"deform_conv2d: input has {input.shape[1]} channels, but weight expects {weight.shape[1]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"deform_conv2d: bias must have shape {_shape(weight)[:1]}, not {_shape(bias)}")
    taps = weight.shape[2] * weight.shape[3]
    out_h, out_w = _output_size(input, weight, stride, padding)
    for name, field, channels in (("offset", offset, 2 * taps), ("mask", mask, taps)):
        if field is None:
            continue
        if field.dim() != 4 or field.shape[:2] != (input.shape[0], channels):
            raise ValueError(
                f"deform_conv2d: {name} must have shape ({input.shape[0]}, {channels}, h, w), not {_shape(field)}"
            )
        if field.shape[2] * field.shape[3] < out_h * out_w:
            raise ValueError(
                f"deform_conv2d: {name} of {field.shape[2]}x{field.shape[3]} is smaller than the output {out_h}x{out_w}"
            )
    for name, other in (("offset", offset), ("mask", mask), ("weight", weight), ("bias", bias)):
        if other is not None and other.device != input.device:
            raise ValueError(f"deform_conv2d: {name} is on {other.device}, but input is on {input.device}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _register() -> None:
    torch.library.register_fake("sdpt_ext::deform_conv2d", _fake_forward)
    torch.library.register_fake("sdpt_ext::deform_conv2d_backward_data", _fake_backward_data)
    torch.library.register_fake("sdpt_ext::deform_conv2d_backward_weight", _fake_backward_weight)
    torch.library.register_autograd("sdpt_ext::deform_conv2d", _backward, setup_context=_setup_context)


def _fake_forward(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> Tensor:
    return _channels_last(input, (input.shape[0], weight.shape[0], *_output_size(input, weight, stride, padding)))


def _channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _fake_backward_data(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    needs_input: bool,
    needs_offset_or_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    def gradient(needed: bool, tensor: Tensor | None) -> Tensor:
        return input.new_empty(tensor.shape if needed and tensor is not None else (0,))

    return (
        _channels_last(input, tuple(input.shape)) if needs_input else input.new_empty(0),
        gradient(needs_offset_or_mask, offset),
        gradient(needs_offset_or_mask, mask),
    )


def _fake_backward_weight(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, mask, weight, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(input, offset, mask, weight)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    needs_input, needs_offset, needs_mask, needs_weight, needs_bias = ctx.needs_input_grad[:5]
    arguments = (grad_output, *ctx.saved_tensors, ctx.stride, ctx.padding)
    grad_input = grad_offset = grad_mask = grad_weight = grad_bias = None
    if needs_input or needs_offset or needs_mask:
        grad_input, grad_offset, grad_mask = torch.ops.sdpt_ext.deform_conv2d_backward_data(
            *arguments, needs_input, needs_offset or needs_mask
        )
    if needs_weight:
        grad_weight = torch.ops.sdpt_ext.deform_conv2d_backward_weight(*arguments)
    if needs_bias:
        grad_bias = grad_output.sum((0, 2, 3))
    gradients = (grad_input, grad_offset, grad_mask, grad_weight, grad_bias)
    needed = (needs_input, needs_offset, needs_mask, needs_weight, needs_bias)
    return (*(gradient if need else None for gradient, need in zip(gradients, needed, strict=True)), None, None)


if _library.library().path is not None:
    _register()
