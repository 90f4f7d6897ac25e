"""Prompts mapped from their tokens and joined to the text of a fusion layer in one step.

Everything that a frozen fusion layer makes of a prototype token is affine in the token (SDPT, section 3.3, with the
projections absorbed as in :mod:`sdpt_ext.ops.bi_attention`): one matrix, applied where its rows are written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdpt_ext import _library

_NAME = "join_prompts"


def join_prompts(
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    tokens: Tensor,
    weight: Tensor,
    offset: Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The text rows of every image followed by K prompts, and the prompts' image rows.

    A prompt is ``tokens weight^T + offset``, an image row (D), keys (H, D), their bias (H) and values (H, D) in turn.
    Gradients flow to the text and to the tokens.

    Args:
        keys, values: (B, H, L, D) absorbed text; their dtype is that of the results.
        key_bias: (B, H, L).
        tokens: (K, E).
        weight: (F, E) with F = D + H D + H + H D, constant.
        offset: (F,), constant.
        backend: "auto" (compiled where there is a kernel for the device), "ext" or "torch".

    Returns:
        keys (B, H, L + K, D), key_bias (B, H, L + K), values as keys, and image rows (K, D).

    Raises:
        ValueError: shapes or devices that do not fit each other, or an unknown backend.
        MissingKernelError: the compiled operator was asked for and cannot run; it is a RuntimeError.
    """
    _check(keys, key_bias, values, tokens, weight, offset)
    with torch.autocast(keys.device.type, enabled=False):
        if _chosen(backend, tokens) == "ext":
            joined: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.sdpt_ext.join_prompts(
                keys, key_bias, values, tokens, weight, offset
            )
            return joined
        return join_prompts_reference(keys, key_bias, values, tokens, weight, offset)


def joins_compiled(tokens: Tensor) -> bool:
    """Whether there is a kernel for such tokens that "auto" runs: on GPUs alone, where launches count."""
    return _chosen("auto", tokens) == "ext"


def _chosen(backend: str, tokens: Tensor) -> str:
    # Where there is no kernel by design, PyTorch is the choice and nothing to warn of.
    if backend == "auto" and not _library.has_kernel(_NAME, tokens.device.type):
        return "torch"
    return _library.resolve_backend(_NAME, backend, tokens)


def join_prompts_reference(
    keys: Tensor, key_bias: Tensor, values: Tensor, tokens: Tensor, weight: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same operator in plain PyTorch."""
    batch, heads, _, width = keys.shape
    rows = functional.linear(tokens, weight, offset).to(keys.dtype)
    image, *behind = rows.split((width, heads * width, heads, heads * width), dim=1)
    new_keys, new_bias, new_values = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in behind)
    return (
        torch.cat([keys, new_keys.expand(batch, -1, -1, -1)], dim=2),
        torch.cat([key_bias, new_bias.squeeze(-1).expand(batch, -1, -1)], dim=2),
        torch.cat([values, new_values.expand(batch, -1, -1, -1)], dim=2),
        image,
    )


def _check(keys: Tensor, key_bias: Tensor, values: Tensor, tokens: Tensor, weight: Tensor, offset: Tensor) -> None:
    if keys.dim() != 4 or tokens.dim() != 2:
        raise ValueError(
            f"{_NAME}: keys must be (B, H, L, D) and tokens (K, E), got {tuple(keys.shape)}, {tuple(tokens.shape)}"
        )
    _, heads, _, width = keys.shape
    outputs = width + heads * (2 * width + 1)
    expected = {
        "key_bias": (key_bias, keys.shape[:3]),
        "values": (values, keys.shape),
        "weight": (weight, (outputs, tokens.shape[1])),
        "offset": (offset, (outputs,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{_NAME}: {name} must be {tuple(shape)}, got {tuple(tensor.shape)}")
    for name, tensor in {"tokens": tokens, **{name: tensor for name, (tensor, _) in expected.items()}}.items():
        if tensor.device != keys.device:
            raise ValueError(f"{_NAME}: {name} is on {tensor.device}, but keys are on {keys.device}")


def _fake(
    keys: Tensor, key_bias: Tensor, values: Tensor, tokens: Tensor, weight: Tensor, offset: Tensor
) -> tuple[Tensor, ...]:
    batch, heads, text, width = keys.shape
    joined = (batch, heads, text + tokens.shape[0], width)
    return (
        keys.new_empty(joined),
        keys.new_empty(joined[:3]),
        keys.new_empty(joined),
        keys.new_empty(tokens.shape[0], width),
    )


def _fake_backward(
    grad_keys: Tensor, grad_bias: Tensor, grad_values: Tensor, grad_image_rows: Tensor, weight: Tensor
) -> Tensor:
    return weight.new_empty(grad_image_rows.shape[0], weight.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.text = inputs[0].shape[2]
    ctx.save_for_backward(inputs[4])


def _backward(
    ctx: Any, grad_keys: Tensor, grad_bias: Tensor, grad_values: Tensor, grad_image_rows: Tensor
) -> tuple[Tensor | None, ...]:
    gradients = (grad_keys, grad_bias, grad_values)
    text = (gradient[:, :, : ctx.text] if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad))
    tokens = None
    if ctx.needs_input_grad[3]:
        tokens = torch.ops.sdpt_ext.join_prompts_backward(*gradients, grad_image_rows, *ctx.saved_tensors)
    return (*text, tokens, None, None)


def _register() -> None:
    torch.library.register_fake(f"sdpt_ext::{_NAME}", _fake)
    torch.library.register_fake(f"sdpt_ext::{_NAME}_backward", _fake_backward)
    torch.library.register_autograd(f"sdpt_ext::{_NAME}", _backward, setup_context=_setup_context)


if _library.library().path is not None:
    _register()

__all__ = ["join_prompts", "join_prompts_reference", "joins_compiled"]
