"""Bi-directional multi-head attention with the projections absorbed to the text side.

The scores of head h are ``S_h = x A_h^T + c_h`` with ``A_h`` of the image width, so no projection of the image tokens
exists, and one score matrix serves both directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdpt_ext import _library
from sdpt_ext.ops.dropout import Dropout
from sdpt_ext.ops.folded_bi_attention import FoldedBiAttention, accumulation_dtype


def bi_attention(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    prompts: Tensor | None = None,
    num_text: int | None = None,
    image_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    return_mass: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Both directions of GLIP's fusion attention from one score matrix.

    ``y = sum_h softmax_T(x A_h^T + c_h) V_h`` and ``u_h = softmax_{N+K}(A_h [x; p]^T) [x; p]``.

    Args:
        x: (B, N, D) image tokens; they set the precision of the products, unless autocast does. On a GPU those of
            float32 are of TF32 where ``torch.backends.cuda.matmul`` allows it.
        keys: (B, H, T, D) absorbed text keys A, already scaled.
        key_bias: (B, H, T) score offsets c; -inf hides a token from the image.
        values: (B, H, T, D) absorbed text values V.
        prompts: (K, D) image-side rows that are attended to but produce no image output.
        num_text: the first L of the T text rows get a ``u`` (default: all).
        image_mask: (B, N) bool, False hides a padded image position from the text.
        dropout_p: dropout probability on the attention weights of both directions, below 1.
        seed: seed of the dropout masks; the same seed gives the same masks on every backend and device.
        return_mass: also return what is left of each text row's weights after dropout.
        backend: "auto", "ext" (compiled) or "torch" (plain PyTorch).

    Returns:
        y (B, N, D), u (B, H, L, D) and, when asked, mass (B, H, L), which is 1 without dropout. An image token that
        sees no text, and a text token that sees no image, gets zeros.

    Raises:
        ValueError: shapes or devices that do not fit each other, or an unknown backend.
        MissingKernelError: the compiled operator was asked for and cannot run; it is a RuntimeError.
    """
    num_text = keys.shape[2] if num_text is None else num_text
    _check(x, keys, key_bias, values, prompts, image_mask, num_text, dropout_p)
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
    differentiable = (x, keys, key_bias, values, prompts)
    gradients = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)
    chosen = _library.resolve_backend("bi_attention", backend, x, dtype, gradients)
    with torch.autocast(device_type, enabled=False):
        tensors = (
            x.to(dtype),
            keys.to(dtype),
            key_bias.to(accumulation_dtype(dtype)),
            values.to(dtype),
            None if prompts is None else prompts.to(dtype),
            image_mask,
        )
        if chosen == "ext":
            y, u, mass = _compiled(*tensors, num_text, dropout_p, seed)
        else:
            y, u, mass = FoldedBiAttention.apply(*tensors, num_text, Dropout(dropout_p, seed))
    return (y, u, mass) if return_mass else (y, u)


def has_residual(v: Tensor, norm: nn.LayerNorm, offset: Tensor, backend: str = "auto") -> bool:
    """Whether :func:`bi_attention_residual` can run on such tensors in the precision that :func:`bi_attention` has.

    Raises:
        MissingKernelError: the compiled operator was asked for and cannot run; it is a RuntimeError.
    """
    return (
        v.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and type(norm) is nn.LayerNorm  # not what a library put in its place
        and not norm._forward_hooks
        and not norm._forward_pre_hooks
        and norm.weight.dtype == offset.dtype == v.dtype
        and not torch.is_autocast_enabled(v.device.type)
        and _library.resolve_backend("bi_attention", backend, v, gradients=False) == "ext"
        and _library.has_kernel("bi_attention_residual", v.device.type)
    )


def bi_attention_residual(
    v: Tensor,
    norm: nn.LayerNorm,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    offset: Tensor,
    prompts: Tensor | None = None,
    num_text: int | None = None,
    image_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x + offset + y`` for ``x = norm(v)``, with the y of :func:`bi_attention` at x; compiled, without gradients.

    At the size of the image every further pass over it costs as much as attending to a short text.

    Args:
        v: (B, N, D) image tokens.
        norm: over the last dimension, with weight and bias.
        offset: (D,) is added to every row.

    The other arguments are those of :func:`bi_attention`.

    Returns:
        The sum (B, N, D), u (B, H, L, D) and mass (B, H, L).
    """
    num_text = keys.shape[2] if num_text is None else num_text
    _check(v, keys, key_bias, values, prompts, image_mask, num_text, dropout_p=0.0)
    bias = key_bias.to(accumulation_dtype(v.dtype))
    mask = None if image_mask is None else image_mask.bool()
    y, u, mass = torch.ops.sdpt_ext.bi_attention_residual(
        v, norm.weight, norm.bias, norm.eps, keys, bias, values, offset, prompts, mask, num_text
    )
    return y, u, mass.to(v.dtype)


def _check(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    prompts: Tensor | None,
    image_mask: Tensor | None,
    num_text: int,
    dropout_p: float,
) -> None:
    if x.dim() != 3 or keys.dim() != 4:
        raise ValueError(
            f"bi_attention: x must be (B, N, D) and keys (B, H, T, D), got {tuple(x.shape)}, {tuple(keys.shape)}"
        )
    if keys.shape[0] != x.shape[0] or keys.shape[3] != x.shape[2]:
        raise ValueError(f"bi_attention: keys {tuple(keys.shape)} do not fit x {tuple(x.shape)} in batch or width")
    if values.shape != keys.shape or key_bias.shape != keys.shape[:3]:
        raise ValueError(
            f"bi_attention: values {tuple(values.shape)} and key_bias {tuple(key_bias.shape)} do not fit "
            f"keys {tuple(keys.shape)}"
        )
    if prompts is not None and (prompts.dim() != 2 or prompts.shape[1] != x.shape[2]):
        raise ValueError(f"bi_attention: prompts must be (K, {x.shape[2]}), got {tuple(prompts.shape)}")
    if image_mask is not None and image_mask.shape != x.shape[:2]:
        raise ValueError(f"bi_attention: image_mask must be {tuple(x.shape[:2])}, got {tuple(image_mask.shape)}")
    if not 0 <= num_text <= keys.shape[2]:
        raise ValueError(f"bi_attention: num_text must be between 0 and {keys.shape[2]}, got {num_text}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"bi_attention: dropout_p must be at least 0 and below 1, got {dropout_p}")
    others = {"keys": keys, "key_bias": key_bias, "values": values, "prompts": prompts, "image_mask": image_mask}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"bi_attention: {name} is on {tensor.device}, but x is on {x.device}")


def _compiled(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    prompts: Tensor | None,
    image_mask: Tensor | None,
    *options: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = x.dtype
    if dtype == torch.float16 and x.device.type == "cpu":  # no processor multiplies them any faster
        x, keys, values = x.float(), keys.float(), values.float()
        prompts = None if prompts is None else prompts.float()
    mask = None if image_mask is None else image_mask.bool()
    tf32 = _library.tf32_allowed(x.device.type)
    y, u, mass, _, _ = torch.ops.sdpt_ext.bi_attention(x, keys, key_bias, values, prompts, mask, *options, tf32)
    return y.to(dtype), u.to(dtype), mass.to(dtype)


def _fake_forward(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    prompts: Tensor | None,
    image_mask: Tensor | None,
    num_text: int,
    *_: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads = keys.shape[:2]
    mass = key_bias.new_empty(batch, heads, num_text)
    image_lse = key_bias.new_empty(batch, heads, x.shape[1])
    u = x.new_empty(batch, heads, num_text, x.shape[2])
    return x.new_empty(x.shape), u, mass, image_lse, torch.empty_like(mass)


def _fake_residual(
    v: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_epsilon: float,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    offset: Tensor,
    prompts: Tensor | None,
    image_mask: Tensor | None,
    num_text: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_forward(v, keys, key_bias, values, prompts, image_mask, num_text)[:3]


def _fake_backward(
    grad_y: Tensor,
    grad_u: Tensor,
    grad_mass: Tensor,
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    prompts: Tensor | None,
    *saved_and_options: Any,
) -> tuple[Tensor, ...]:
    grads = [tensor.new_empty(tensor.shape) for tensor in (x, keys, key_bias, values)]
    return (*grads, x.new_empty(0) if prompts is None else prompts.new_empty(prompts.shape))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.options = inputs[:6], inputs[6:]
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, grad_y: Tensor, grad_u: Tensor, grad_mass: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.sdpt_ext.bi_attention_backward(grad_y, grad_u, grad_mass, *ctx.saved_tensors, *ctx.options)
    needed = (grad if need else None for grad, need in zip(grads, ctx.needs_input_grad))
    return (*needed, None, *(None for _ in ctx.options))


def _register() -> None:
    torch.library.register_fake("sdpt_ext::bi_attention", _fake_forward)
    torch.library.register_fake("sdpt_ext::bi_attention_backward", _fake_backward)
    torch.library.register_fake("sdpt_ext::bi_attention_residual", _fake_residual)
    torch.library.register_autograd("sdpt_ext::bi_attention", _backward, setup_context=_setup_context)


if _library.library().path is not None:
    _register()

__all__ = ["bi_attention", "bi_attention_residual", "has_residual"]
