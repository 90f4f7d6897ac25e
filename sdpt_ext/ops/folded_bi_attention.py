"""Bi-directional attention in plain PyTorch: the reference of the compiled operator, and its stand-in.

The image is visited in chunks of rows; the softmax over image positions is merged online, and backward recomputes the
scores from its saved log-sum-exp. So no tensor of shape (positions, tokens) for the whole image ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpt_ext.ops.dropout import TO_IMAGE, TO_TEXT, Dropout

_CHUNK_ROWS = 2048


class _Chunk(NamedTuple):
    """Consecutive image rows; prompt rows follow the image's and have no output of their own."""

    rows: Tensor
    numbers: range
    hidden: Tensor | None
    is_image: bool

    @property
    def span(self) -> slice:
        return slice(self.numbers.start, self.numbers.stop)


def _chunks(x: Tensor, prompts: Tensor | None, image_mask: Tensor | None) -> Iterator[_Chunk]:
    batch, positions = x.shape[:2]
    for start in range(0, positions, _CHUNK_ROWS):
        numbers = range(start, min(start + _CHUNK_ROWS, positions))
        span = slice(numbers.start, numbers.stop)
        yield _Chunk(x[:, span], numbers, None if image_mask is None else ~image_mask[:, span].bool(), True)
    if prompts is not None and prompts.shape[0]:
        numbers = range(positions, positions + prompts.shape[0])
        yield _Chunk(prompts.expand(batch, -1, -1), numbers, None, False)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the softmax and of sums over the image."""
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

    def update(self, logits: Tensor, rows: Tensor, keep: Tensor | None) -> None:
        maximum = torch.maximum(self.maximum, logits.amax(-1))
        finite = maximum.masked_fill(maximum == -torch.inf, 0.0)
        rescale = torch.exp(self.maximum - finite)
        weights = torch.exp(logits - finite[..., None])
        kept = weights if keep is None else weights * keep
        self.total = self.total * rescale + weights.sum(-1)
        self.mass = self.mass * rescale + kept.sum(-1)
        update = torch.matmul(kept.flatten(1, 2).to(rows.dtype), rows).view_as(self.weighted)
        self.weighted = self.weighted * rescale[..., None] + update
        self.maximum = maximum

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """-> sums, their mass, log-sum-exp of the logits: zero, zero and +inf where there was nothing to attend to."""
        total = self.total.clamp_min(torch.finfo(self.total.dtype).tiny)
        log_sum = (self.maximum + torch.log(total)).masked_fill(self.total == 0, torch.inf)
        return self.weighted / total[..., None], self.mass / total, log_sum


class FoldedBiAttention(torch.autograd.Function):
    """``y, u, mass`` of :func:`sdpt_ext.ops.bi_attention`."""

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
        dropout: Dropout,
    ) -> tuple[Tensor, Tensor, Tensor]:
        visit = _Visit(x, keys, bias, values, num_text, dropout)
        y = torch.empty_like(x)
        text = _OnlineSoftmax((*keys.shape[:2], num_text), x.shape[2], x, visit.dtype)
        for chunk in _chunks(x, prompts, image_mask):
            scores = visit.scores(chunk)
            if chunk.is_image:
                weights, keep = visit.weights_over_text(scores), visit.keep_over_text(chunk)
                weights = weights if keep is None else weights * keep
                y[:, chunk.span] = weights.flatten(2).to(x.dtype) @ visit.flat_values
            if num_text:
                logits = _image_scores(scores, num_text, chunk.hidden)
                text.update(logits, chunk.rows, visit.keep_over_rows(chunk))
        u, mass, log_sum = text.result()
        ctx.save_for_backward(x, keys, bias, values, prompts, image_mask, u, mass, log_sum)
        ctx.num_text, ctx.dropout = num_text, dropout
        return y, u.to(x.dtype), mass.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return (*_Backward(ctx, *grads).run(), None, None, None)


class _Visit:
    """The text side, in the form in which every chunk of the image meets it."""

    def __init__(self, x: Tensor, keys: Tensor, bias: Tensor, values: Tensor, num_text: int, dropout: Dropout) -> None:
        self.shape = (keys.shape[0], keys.shape[1], keys.shape[2])
        self.dtype = accumulation_dtype(x.dtype)
        self.num_text, self.dropout = num_text, dropout
        # Softmax over nothing is 0/0: a caption without a visible token gets any weights, and values of zero.
        self.blind = (bias == -torch.inf).all(-1, keepdim=True)
        self.bias = bias.masked_fill(self.blind, 0.0)
        self.flat_keys = keys.flatten(1, 2)
        self.flat_values = values.masked_fill(self.blind[..., None], 0.0).flatten(1, 2)

    def scores(self, chunk: _Chunk) -> Tensor:
        """(B, n, H, T)"""
        return (chunk.rows @ self.flat_keys.mT).to(self.dtype).unflatten(2, self.shape[1:])

    def weights_over_text(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores + self.bias[:, None], dim=-1)

    def keep_over_text(self, chunk: _Chunk) -> Tensor | None:
        """Factors (B, n, H, T) of dropout."""
        keep = self._keep(TO_IMAGE, chunk)
        return None if keep is None else keep.permute(0, 3, 1, 2)

    def keep_over_rows(self, chunk: _Chunk) -> Tensor | None:
        """Factors (B, H, L, n) of dropout."""
        keep = self._keep(TO_TEXT, chunk)
        return None if keep is None else keep[:, :, : self.num_text]

    def _keep(self, direction: int, chunk: _Chunk) -> Tensor | None:
        if self.dropout.probability == 0.0:
            return None
        return self.dropout.factors(direction, self.shape, chunk.numbers, self.bias)


class _Backward:
    """One visit of the image that recomputes the scores and adds up the gradients of all inputs."""

    def __init__(self, ctx: Any, grad_y: Tensor, grad_u: Tensor, grad_mass: Tensor) -> None:
        self.x, keys, bias, values, self.prompts, self.image_mask, u, mass, self.log_sum = ctx.saved_tensors
        self.visit = _Visit(self.x, keys, bias, values, ctx.num_text, ctx.dropout)
        self.grad_y, self.flat_grad_u, self.grad_mass = grad_y, grad_u.flatten(1, 2), grad_mass.to(u.dtype)
        self.delta = (grad_u.to(u.dtype) * u).sum(-1) + self.grad_mass * mass
        self.grad_keys = torch.zeros_like(self.visit.flat_keys, dtype=self.visit.dtype)
        self.grad_bias = torch.zeros_like(bias)
        self.grad_values = torch.zeros_like(self.visit.flat_values, dtype=self.visit.dtype)

    def run(self) -> tuple[Tensor | None, ...]:
        visit, dtype = self.visit, self.x.dtype
        grad_x = torch.empty_like(self.x)
        grad_prompts = None if self.prompts is None else torch.zeros_like(self.prompts)
        for chunk in _chunks(self.x, self.prompts, self.image_mask):
            scores = visit.scores(chunk)
            grad_scores = self._image_direction(chunk, scores) if chunk.is_image else torch.zeros_like(scores)
            grad_rows = self._text_direction(chunk, scores, grad_scores) if visit.num_text else 0.0
            flat_grad_scores = grad_scores.flatten(2).to(dtype)
            self.grad_keys += flat_grad_scores.mT @ chunk.rows
            grad_rows = grad_rows + flat_grad_scores @ visit.flat_keys
            if chunk.is_image:
                grad_x[:, chunk.span] = grad_rows
            elif grad_prompts is not None:
                grad_prompts += grad_rows.sum(0)
        heads = visit.shape[1:]
        grad_keys = self.grad_keys.to(dtype).unflatten(1, heads)
        grad_values = self.grad_values.to(dtype).unflatten(1, heads).masked_fill(visit.blind[..., None], 0.0)
        return grad_x, grad_keys, self.grad_bias, grad_values, grad_prompts

    def _image_direction(self, chunk: _Chunk, scores: Tensor) -> Tensor:
        """-> gradient of the scores."""
        visit = self.visit
        weights, keep = visit.weights_over_text(scores), visit.keep_over_text(chunk)
        grad_y = self.grad_y[:, chunk.span]
        grad_weights = (grad_y @ visit.flat_values.mT).to(visit.dtype).view_as(weights)
        kept = weights
        if keep is not None:
            grad_weights, kept = grad_weights * keep, weights * keep
        self.grad_values += kept.flatten(2).to(self.x.dtype).mT @ grad_y
        grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
        self.grad_bias += grad_logits.sum(1)
        return grad_logits

    def _text_direction(self, chunk: _Chunk, scores: Tensor, grad_scores: Tensor) -> Tensor:
        """Adds to ``grad_scores`` and returns the gradient of the chunk's rows as what the text gathers."""
        visit = self.visit
        logits = _image_scores(scores, visit.num_text, chunk.hidden)
        weights, keep = torch.exp(logits - self.log_sum[..., None]), visit.keep_over_rows(chunk)
        grad_weights = (self.flat_grad_u @ chunk.rows.mT).to(visit.dtype).view_as(logits) + self.grad_mass[..., None]
        kept = weights
        if keep is not None:
            grad_weights, kept = grad_weights * keep, weights * keep
        grad_logits = weights * (grad_weights - self.delta[..., None])
        grad_scores[..., : visit.num_text] += grad_logits.permute(0, 3, 1, 2)
        return kept.flatten(1, 2).to(self.x.dtype).mT @ self.flat_grad_u


__all__ = ["FoldedBiAttention", "accumulation_dtype"]
