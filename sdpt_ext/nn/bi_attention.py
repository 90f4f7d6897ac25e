"""GLIP's fusion block: image and text tokens attend to each other through one score matrix (GLIP, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sdpt_ext.ops.bi_attention import bi_attention

BACKENDS = ("auto", "ext", "torch", "eager")
_SCORE_LIMIT = 50_000.0
_MASKED_SCORE = -9e15


class PromptRows(NamedTuple):
    """Prompts of one fusion layer in both input spaces.

    Attributes:
        image: (K, d_v) rows that the text attends to.
        text: (K, d_l) rows that the image attends to.
        text_visible: False hides the text rows from the image (the behaviour of the released SDPT code).
        gate: (H,) factor per head on what the prompts contribute, or None for one joint softmax.
    """

    image: Tensor
    text: Tensor
    text_visible: bool = True
    gate: Tensor | None = None


class Prompt(Protocol):
    """Something that yields the prompt rows of a fusion layer, for example SDPT's prototype tokens."""

    def __call__(self, attention: BiMultiHeadAttention) -> PromptRows | None: ...


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over text with GLIP's additive mask: the mask value itself (+1) on real tokens, -9e15 on padding."""
    if mask is not None:
        scores = scores + mask.to(scores.dtype).masked_fill(mask == 0, _MASKED_SCORE)[:, None, None]
    return scores.softmax(-1)


class BiMultiHeadAttention(nn.Module):
    """Multi-head attention in both directions between (B, N, v_dim) image and (B, L, l_dim) text tokens."""

    def __init__(self, v_dim: int, l_dim: int, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.v_dim, self.l_dim, self.embed_dim, self.num_heads = v_dim, l_dim, embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.dropout = dropout
        self.v_proj = nn.Linear(v_dim, embed_dim)
        self.l_proj = nn.Linear(l_dim, embed_dim)
        self.values_v_proj = nn.Linear(v_dim, embed_dim)
        self.values_l_proj = nn.Linear(l_dim, embed_dim)
        self.out_v_proj = nn.Linear(embed_dim, v_dim)
        self.out_l_proj = nn.Linear(embed_dim, l_dim)
        self.reset_parameters()

    @property
    def projections(self) -> tuple[nn.Linear, ...]:
        return (
            self.v_proj,
            self.l_proj,
            self.values_v_proj,
            self.values_l_proj,
            self.out_v_proj,
            self.out_l_proj,
        )

    def reset_parameters(self) -> None:
        for layer in self.projections:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def _merge(self, heads: Tensor) -> Tensor:
        return heads.transpose(-3, -2).flatten(-2)

    # ---- textbook form ---------------------------------------------------------------------------------------

    def _attend(self, v: Tensor, l: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = self._split(self.v_proj(v) * self.scale) @ self._split(self.l_proj(l)).mT
        scores = scores.clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
        to_text = _masked_softmax(scores, mask)
        to_image = (scores.mT - scores.mT.amax(-1, keepdim=True)).clamp(-_SCORE_LIMIT, _SCORE_LIMIT).softmax(-1)
        to_text = nn.functional.dropout(to_text, self.dropout, self.training)
        to_image = nn.functional.dropout(to_image, self.dropout, self.training)
        return to_text @ self._split(self.values_l_proj(l)), to_image @ self._split(self.values_v_proj(v))

    def forward_eager(
        self, v: Tensor, l: Tensor, mask: Tensor | None, prompts: PromptRows | None
    ) -> tuple[Tensor, Tensor]:
        """Unfolded attention over the concatenated tokens: the definition, for tests and benchmarks."""
        if prompts is None:
            heads_v, heads_l = self._attend(v, l, mask)
        elif prompts.gate is None:
            heads_v, heads_l = self._attend_concatenated(v, l, mask, prompts)
        else:
            heads_v, heads_l = self._attend_gated(v, l, mask, prompts)
        return self.out_v_proj(self._merge(heads_v)), self.out_l_proj(self._merge(heads_l))

    def _attend_concatenated(
        self, v: Tensor, l: Tensor, mask: Tensor | None, prompts: PromptRows
    ) -> tuple[Tensor, Tensor]:
        batch, num_prompts = v.shape[0], prompts.image.shape[0]
        mask = l.new_ones(l.shape[:2]) if mask is None else mask
        mask = nn.functional.pad(mask, (0, num_prompts), value=int(prompts.text_visible))
        v_all = torch.cat([v, prompts.image.expand(batch, -1, -1)], dim=1)
        l_all = torch.cat([l, prompts.text.expand(batch, -1, -1)], dim=1)
        heads_v, heads_l = self._attend(v_all, l_all, mask)
        return heads_v[:, :, : v.shape[1]], heads_l[:, :, : l.shape[1]]

    def _attend_gated(self, v: Tensor, l: Tensor, mask: Tensor | None, prompts: PromptRows) -> tuple[Tensor, Tensor]:
        assert prompts.gate is not None
        gate = prompts.gate[:, None, None]
        heads_v, heads_l = self._attend(v, l, mask)
        batch = v.shape[0]
        if prompts.text_visible:
            heads_v = heads_v + gate * self._attend(v, prompts.text.expand(batch, -1, -1), None)[0]
        return heads_v, heads_l + gate * self._attend(prompts.image.expand(batch, -1, -1), l, None)[1]

    # ---- folded form -----------------------------------------------------------------------------------------

    def absorb(self, l: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text tokens (B, L, l_dim) -> keys A (B, H, L, v_dim), biases c (B, H, L), values V' (B, H, L, v_dim).

        ``x A^T + c`` are the scores of image tokens x; ``P V'`` is their output after the output projection.
        """
        keys = self._split(self.l_proj(l)) * self.scale
        query_weight = self.v_proj.weight.unflatten(0, (self.num_heads, self.head_dim))
        query_bias = self.v_proj.bias.unflatten(0, (self.num_heads, self.head_dim))
        out_weight = self.out_v_proj.weight.unflatten(1, (self.num_heads, self.head_dim)).transpose(0, 1)
        bias = (keys @ query_bias[..., None]).squeeze(-1)
        return keys @ query_weight, bias, self._split(self.values_l_proj(l)) @ out_weight.mT

    def project_text_output(self, u: Tensor, mass: Tensor | float = 1.0) -> Tensor:
        """Attention-weighted image rows u (B, H, L, v_dim) -> text output (B, L, l_dim)."""
        value_weight = self.values_v_proj.weight.unflatten(0, (self.num_heads, self.head_dim))
        value_bias = self.values_v_proj.bias.unflatten(0, (self.num_heads, 1, self.head_dim))
        heads = u @ value_weight.mT + (value_bias if isinstance(mass, float) else mass[..., None] * value_bias)
        return self.out_l_proj(self._merge(heads))

    def forward_folded(
        self, v: Tensor, l: Tensor, mask: Tensor | None, prompts: PromptRows | None, backend: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        """The same result through :func:`sdpt_ext.ops.bi_attention`: no (N, embed_dim) and no N x L tensor."""
        keys, bias, values = self.absorb(l)
        if mask is not None:
            bias = bias.masked_fill(mask[:, None] == 0, -torch.inf)
        image_rows = None
        if prompts is not None and prompts.gate is None:
            image_rows = prompts.image
            if prompts.text_visible:
                rows = [row.expand(v.shape[0], *row.shape[1:]) for row in self.absorb(prompts.text[None])]
                keys, bias, values = (torch.cat(pair, dim=2) for pair in zip((keys, bias, values), rows))
        dropout = self.dropout if self.training else 0.0
        seed = int(torch.randint(2**31, ())) if dropout else 0
        y, u, mass = bi_attention(
            v,
            keys,
            bias,
            values,
            image_rows,
            num_text=l.shape[1],
            dropout_p=dropout,
            seed=seed,
            return_mass=True,
            backend=backend,
        )
        if prompts is not None and prompts.gate is not None:
            y, u, mass = self._add_gated(v, keys, y, u, mass, prompts)
        return y + self.out_v_proj.bias, self.project_text_output(u, mass)

    def _add_gated(
        self, v: Tensor, keys: Tensor, y: Tensor, u: Tensor, mass: Tensor, prompts: PromptRows
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert prompts.gate is not None
        if prompts.text_visible:
            rows = [row.expand(v.shape[0], *row.shape[1:]) for row in self.absorb(prompts.text[None])]
            gated_values = rows[2] * prompts.gate[:, None, None]
            y = y + bi_attention(v, rows[0], rows[1], gated_values, num_text=0)[0]
        weights = (keys @ prompts.image.mT).softmax(-1)
        gate = prompts.gate[:, None]
        return y, u + gate[..., None] * (weights @ prompts.image), mass + gate


class BiAttentionBlock(nn.Module):
    """Pre-norm fusion block with scaled residuals; the residuals are taken from the normalised tensors.

    Args:
        v_dim, l_dim: widths of the image and text tokens.
        embed_dim: width of the aligned space; num_heads heads of embed_dim / num_heads.
        init_values: start of the residual scales gamma (GLIP: 1 / number of fusion layers).
        dropout: dropout on both attention weights while training.

    Attributes:
        backend: "auto" (the fastest exact one), "ext" (compiled), "torch" (folded) or "eager" (textbook).
        prompt: None, or a module that yields the layer's :class:`PromptRows`.
    """

    def __init__(
        self,
        v_dim: int,
        l_dim: int,
        embed_dim: int,
        num_heads: int,
        init_values: float = 1e-4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(v_dim)
        self.layer_norm_l = nn.LayerNorm(l_dim)
        self.attn = BiMultiHeadAttention(v_dim, l_dim, embed_dim, num_heads, dropout)
        self.gamma_v = nn.Parameter(torch.full((v_dim,), init_values))
        self.gamma_l = nn.Parameter(torch.full((l_dim,), init_values))
        self.backend = "auto"
        self.prompt: nn.Module | None = None

    def forward(self, v: Tensor, l: Tensor, attention_mask_l: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse (B, N, v_dim) image with (B, L, l_dim) text tokens; attention_mask_l (B, L) is 1 on real tokens."""
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        v, l = self.layer_norm_v(v), self.layer_norm_l(l)
        prompts = None if self.prompt is None else self.prompt(self.attn)
        if self.backend == "eager":
            delta_v, delta_l = self.attn.forward_eager(v, l, attention_mask_l, prompts)
        else:
            delta_v, delta_l = self.attn.forward_folded(v, l, attention_mask_l, prompts, self.backend)
        return v + self.gamma_v * delta_v, l + self.gamma_l * delta_l


__all__ = ["BACKENDS", "BiAttentionBlock", "BiMultiHeadAttention", "Prompt", "PromptRows"]
