"""Bi-directional multi-head attention with the projections absorbed to the text side.

The scores of head h are ``S_h = x A_h^T + c_h`` with ``A_h`` of the image width, so neither a projection of the
image tokens nor a tensor of shape (positions, tokens) for the whole image ever exists. The image is visited in
chunks of rows; the softmax over image positions is merged online, and backward recomputes the scores from its
saved log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CHUNK_ROWS = 2048


class _Chunk(NamedTuple):
    """Consecutive image rows; prompt rows are a chunk of their own that produces no image output."""

    rows: Tensor
    span: slice | None
    hidden: Tensor | None
    number: int


class _Dropout(NamedTuple):
    """Counter-based: chunk i of a direction always draws the same mask from (seed, i)."""

    probability: float
    seed: int

    def scale(self, like: Tensor, chunk: int, direction: int) -> Tensor | float:
        if self.probability == 0.0:
            return 1.0
        generator = torch.Generator(like.device).manual_seed(self.seed + 2 * chunk + direction)
        keep = torch.rand(like.shape, generator=generator, device=like.device) >= self.probability
        return keep.to(like.dtype) / (1.0 - self.probability)


def _chunks(x: Tensor, prompts: Tensor | None, image_mask: Tensor | None) -> Iterator[_Chunk]:
    count = 0
    for start in range(0, x.shape[1], _CHUNK_ROWS):
        span = slice(start, min(start + _CHUNK_ROWS, x.shape[1]))
        hidden = None if image_mask is None else ~image_mask[:, span].bool()
        yield _Chunk(x[:, span], span, hidden, count)
        count += 1
    if prompts is not None and prompts.shape[0]:
        yield _Chunk(prompts.expand(x.shape[0], -1, -1), None, None, count)


class _VisibleText(NamedTuple):
    """The text rows that some image sees: padding is left out of the image direction altogether."""

    columns: Tensor | None
    bias: Tensor
    blind: Tensor | None

    @classmethod
    def of(cls, bias: Tensor) -> _VisibleText:
        seen = bias != -torch.inf
        columns = None if seen.all() else seen.flatten(0, 1).any(0).nonzero().squeeze(1)
        bias = bias if columns is None else bias[..., columns]
        # A caption without any visible token would turn softmax into 0/0; its image output is zero.
        blind = None if columns is None else ~seen.any(-1)
        if blind is not None and blind.any():
            return cls(columns, bias.masked_fill(blind[..., None], 0.0), blind)
        return cls(columns, bias, None)

    def select(self, rows: Tensor) -> Tensor:
        return rows if self.columns is None else rows[..., self.columns, :]

    def softmax(self, scores: Tensor) -> Tensor:
        """(B, n, H, T) scores -> weights over the visible text rows."""
        scores = scores if self.columns is None else scores[..., self.columns]
        weights = torch.softmax(scores + self.bias[:, None], dim=-1)
        return weights if self.blind is None else weights.masked_fill(self.blind[:, None, :, None], 0.0)

    def add_to(self, full: Tensor, part: Tensor, dim: int = -1) -> None:
        if self.columns is None:
            full += part
        else:
            full.index_add_(dim, self.columns, part)


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _image_scores(scores: Tensor, num_text: int, hidden: Tensor | None) -> Tensor:
    """(B, n, H, T) scores -> (B, H, L, n) logits of the softmax over image positions."""
    logits = scores[..., :num_text].permute(0, 2, 3, 1)
    return logits if hidden is None else logits.masked_fill(hidden[:, None, None], -torch.inf)


class _OnlineSoftmax:
    """Running softmax-weighted sum over image rows for every head and text token (Milakov & Gimelshein, 2018)."""

    def __init__(self, shape: tuple[int, ...], width: int, like: Tensor, dtype: torch.dtype) -> None:
        self.maximum = like.new_full(shape, -torch.inf, dtype=dtype)
        self.total = like.new_zeros(shape, dtype=dtype)
        self.mass = like.new_zeros(shape, dtype=dtype)
        self.weighted = like.new_zeros((*shape, width), dtype=dtype)

    def update(self, logits: Tensor, rows: Tensor, keep: Tensor | float) -> None:
        maximum = torch.maximum(self.maximum, logits.amax(-1))
        finite = maximum.masked_fill(maximum == -torch.inf, 0.0)
        rescale = torch.exp(self.maximum - finite)
        weights = torch.exp(logits - finite[..., None])
        kept = weights * keep
        self.total = self.total * rescale + weights.sum(-1)
        self.mass = self.mass * rescale + kept.sum(-1)
        update = torch.matmul(kept.flatten(1, 2).to(rows.dtype), rows).view_as(self.weighted)
        self.weighted = self.weighted * rescale[..., None] + update
        self.maximum = maximum

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        total = self.total.clamp_min(torch.finfo(self.total.dtype).tiny)
        return self.weighted / total[..., None], self.mass / total, self.maximum + torch.log(total)


class _BiAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keys: Tensor,
        bias: Tensor,
        values: Tensor,
        prompts: Tensor | None,
        image_mask: Tensor | None,
        num_text: int,
        dropout: _Dropout,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads, tokens, width = keys.shape
        dtype = _accumulation_dtype(x.dtype)
        visible = _VisibleText.of(bias)
        flat_keys, flat_values = keys.flatten(1, 2), visible.select(values).flatten(1, 2)
        y = torch.empty_like(x)
        text = _OnlineSoftmax((batch, heads, num_text), width, x, dtype)
        for chunk in _chunks(x, prompts, image_mask):
            scores = (chunk.rows @ flat_keys.mT).to(dtype).view(batch, chunk.rows.shape[1], heads, tokens)
            if chunk.span is not None:
                weights = visible.softmax(scores)
                weights = weights * dropout.scale(weights, chunk.number, 0)
                y[:, chunk.span] = weights.flatten(2).to(x.dtype) @ flat_values
            if num_text:
                logits = _image_scores(scores, num_text, chunk.hidden)
                text.update(logits, chunk.rows, dropout.scale(logits, chunk.number, 1))
        u, mass, log_sum = text.result()
        ctx.save_for_backward(x, keys, bias, values, prompts, image_mask, u, mass, log_sum)
        ctx.num_text, ctx.dropout = num_text, dropout
        return y, u.to(x.dtype), mass.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return (*_Backward(ctx, *grads).run(), None, None, None)


class _Backward:
    """One visit of the image that recomputes the scores and adds up the gradients of all inputs."""

    def __init__(self, ctx: Any, grad_y: Tensor, grad_u: Tensor, grad_mass: Tensor) -> None:
        self.x, self.keys, bias, self.values, self.prompts, self.image_mask, u, mass, self.log_sum = ctx.saved_tensors
        self.num_text, self.dropout = ctx.num_text, ctx.dropout
        self.dtype = u.dtype
        self.visible = _VisibleText.of(bias)
        self.flat_keys = self.keys.flatten(1, 2)
        self.flat_values = self.visible.select(self.values).flatten(1, 2)
        self.grad_y, self.flat_grad_u, self.grad_mass = grad_y, grad_u.flatten(1, 2), grad_mass.to(u.dtype)
        self.delta = (grad_u.to(u.dtype) * u).sum(-1) + self.grad_mass * mass
        self.grad_keys = torch.zeros_like(self.flat_keys)
        self.grad_bias = torch.zeros_like(bias)
        self.grad_values = torch.zeros_like(self.values)

    def run(self) -> tuple[Tensor | None, ...]:
        batch, heads, tokens, _ = self.keys.shape
        grad_x = torch.empty_like(self.x)
        grad_prompts = None if self.prompts is None else torch.zeros_like(self.prompts)
        for chunk in _chunks(self.x, self.prompts, self.image_mask):
            scores = (chunk.rows @ self.flat_keys.mT).to(self.dtype).view(batch, chunk.rows.shape[1], heads, tokens)
            grad_scores = torch.zeros_like(scores)
            if chunk.span is not None:
                self._image_direction(chunk, scores, grad_scores)
            grad_rows = self._text_direction(chunk, scores, grad_scores) if self.num_text else 0.0
            flat_grad_scores = grad_scores.flatten(2).to(self.x.dtype)
            self.grad_keys += flat_grad_scores.mT @ chunk.rows
            grad_rows = grad_rows + flat_grad_scores @ self.flat_keys
            if chunk.span is not None:
                grad_x[:, chunk.span] = grad_rows
            elif grad_prompts is not None:
                grad_prompts += grad_rows.sum(0)
        return grad_x, self.grad_keys.view_as(self.keys), self.grad_bias, self.grad_values, grad_prompts

    def _image_direction(self, chunk: _Chunk, scores: Tensor, grad_scores: Tensor) -> None:
        weights = self.visible.softmax(scores)
        keep = self.dropout.scale(weights, chunk.number, 0)
        grad_y = self.grad_y[:, chunk.span]
        grad_values = (weights * keep).flatten(2).to(self.x.dtype).mT @ grad_y
        self.visible.add_to(self.grad_values, grad_values.unflatten(1, weights.shape[2:]), dim=2)
        grad_weights = (grad_y @ self.flat_values.mT).to(self.dtype).view_as(weights) * keep
        grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
        self.visible.add_to(grad_scores, grad_logits)
        self.visible.add_to(self.grad_bias, grad_logits.sum(1))

    def _text_direction(self, chunk: _Chunk, scores: Tensor, grad_scores: Tensor) -> Tensor:
        """Adds to ``grad_scores`` and returns the gradient of the chunk's rows as values."""
        logits = _image_scores(scores, self.num_text, chunk.hidden)
        weights = torch.exp(logits - self.log_sum[..., None])
        keep = self.dropout.scale(logits, chunk.number, 1)
        grad_weights = (self.flat_grad_u @ chunk.rows.mT).to(self.dtype).view_as(logits) + self.grad_mass[..., None]
        grad_logits = weights * (grad_weights * keep - self.delta[..., None])
        grad_scores[..., : self.num_text] += grad_logits.permute(0, 3, 1, 2)
        return (weights * keep).flatten(1, 2).to(self.x.dtype).mT @ self.flat_grad_u


def _check(x: Tensor, keys: Tensor, key_bias: Tensor, values: Tensor, prompts: Tensor | None, num_text: int) -> None:
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
    if not 0 <= num_text <= keys.shape[2]:
        raise ValueError(f"bi_attention: num_text must be between 0 and {keys.shape[2]}, got {num_text}")


def _check_backend(backend: str) -> None:
    if backend == "ext":
        raise RuntimeError('bi_attention has no compiled kernel; use backend "auto" or "torch"')
    if backend not in ("auto", "torch"):
        raise ValueError(f"bi_attention: unknown backend {backend!r}; choose auto, ext or torch")


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
        x: (B, N, D) image tokens; they set the precision of the products, unless autocast does.
        keys: (B, H, T, D) absorbed text keys A, already scaled.
        key_bias: (B, H, T) score offsets c; -inf hides a token from the image.
        values: (B, H, T, D) absorbed text values V.
        prompts: (K, D) image-side rows that are attended to but produce no image output.
        num_text: the first L of the T text rows get a ``u`` (default: all).
        image_mask: (B, N) bool, False hides a padded image position from the text.
        dropout_p: dropout probability on the attention weights of both directions.
        seed: seed of the dropout masks; the same seed gives the same masks.
        return_mass: also return what is left of each text row's weights after dropout.
        backend: "auto" or "torch"; this operator has no compiled kernel yet, so "ext" is refused.

    Returns:
        y (B, N, D), u (B, H, L, D) and, when asked, mass (B, H, L), which is 1 without dropout.

    Raises:
        ValueError: shapes that do not fit each other, or an unknown backend.
        RuntimeError: backend "ext".
    """
    _check_backend(backend)
    num_text = keys.shape[2] if num_text is None else num_text
    _check(x, keys, key_bias, values, prompts, num_text)
    dropout = _Dropout(float(dropout_p), int(seed))
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
    x, keys, values = x.to(dtype), keys.to(dtype), values.to(dtype)
    prompts = None if prompts is None else prompts.to(dtype)
    with torch.autocast(device_type, enabled=False):
        y, u, mass = _BiAttention.apply(
            x, keys, key_bias.to(_accumulation_dtype(dtype)), values, prompts, image_mask, num_text, dropout
        )
    return (y, u, mass) if return_mass else (y, u)


__all__ = ["bi_attention"]
