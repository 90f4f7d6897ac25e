"""Attention in both directions between image and text tokens, whatever a detector calls its projections.

GLIP's fusion layers and Grounding DINO's hold the same six linear layers under different names. Both get the textbook
form and the folded form of their attention, with and without prompts, from here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdpt_ext.ops.bi_attention import bi_attention

BACKENDS = ("auto", "ext", "torch", "eager")
_SCORE_LIMIT = 50_000.0
_MASKED_SCORE = -9e15


class Projections(NamedTuple):
    """The linear layers of a fusion attention.

    Attributes:
        query, key: (d_v -> E) of the image and (d_l -> E) of the text, whose products are the scores.
        image_values, text_values: (d_v -> E) and (d_l -> E).
        image_output, text_output: (E -> d_v) and (E -> d_l).
    """

    query: nn.Linear
    key: nn.Linear
    image_values: nn.Linear
    text_values: nn.Linear
    image_output: nn.Linear
    text_output: nn.Linear


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


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over text with GLIP's additive mask: the mask value itself (+1) on real tokens, -9e15 on padding."""
    if mask is not None:
        scores = scores + mask.to(scores.dtype).masked_fill(mask == 0, _MASKED_SCORE)[:, None, None]
    return scores.softmax(-1)


def concatenate_prompts(
    v: Tensor, l: Tensor, text_mask: Tensor | None, prompts: PromptRows, image_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """-> image tokens, text tokens, text mask and image mask with the K prompts behind the tokens."""
    batch, count = v.shape[0], prompts.image.shape[0]
    text_mask = l.new_ones(l.shape[:2]) if text_mask is None else text_mask
    text_mask = nn.functional.pad(text_mask, (0, count), value=int(prompts.text_visible))
    if image_mask is not None:
        image_mask = nn.functional.pad(image_mask, (0, count), value=1)
    v = torch.cat([v, prompts.image.expand(batch, -1, -1)], dim=1)
    return v, torch.cat([l, prompts.text.expand(batch, -1, -1)], dim=1), text_mask, image_mask


class FusionAttention:
    """Mix-in for a module that names its six projections.

    Masks are (B, L) over text and (B, N) over image tokens, non-zero on real tokens; None where all are real.
    """

    num_heads: int
    head_dim: int
    scale: float
    dropout: float
    training: bool

    @property
    def projections(self) -> Projections:
        raise NotImplementedError(f"{type(self).__name__} does not name its projections")

    def attend(
        self,
        v: Tensor,
        l: Tensor,
        text_mask: Tensor | None = None,
        prompts: PromptRows | None = None,
        backend: str = "auto",
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d_v) image and (B, L, d_l) text tokens -> what each side gathers from the other, same shapes.

        Raises:
            ValueError: an unknown backend.
        """
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
        if backend == "eager":
            return self.forward_eager(v, l, text_mask, prompts, image_mask)
        return self.forward_folded(v, l, text_mask, prompts, backend, image_mask)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def _merge(self, heads: Tensor) -> Tensor:
        return heads.transpose(-3, -2).flatten(-2)

    # ---- textbook form ---------------------------------------------------------------------------------------

    def attention_weights(
        self, v: Tensor, l: Tensor, text_mask: Tensor | None = None, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weights (B, H, N, L) of image tokens over the text and (B, H, L, N) of text tokens over the image."""
        p = self.projections
        scores = self._split(p.query(v) * self.scale) @ self._split(p.key(l)).mT
        scores = scores.clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
        to_image = (scores.mT - scores.mT.amax(-1, keepdim=True)).clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
        if image_mask is not None:
            to_image = to_image.masked_fill(image_mask[:, None, None] == 0, -torch.inf)
        return _masked_softmax(scores, text_mask), to_image.softmax(-1)

    def _attend(
        self, v: Tensor, l: Tensor, text_mask: Tensor | None = None, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        to_text, to_image = self.attention_weights(v, l, text_mask, image_mask)
        to_text = nn.functional.dropout(to_text, self.dropout, self.training)
        to_image = nn.functional.dropout(to_image, self.dropout, self.training)
        p = self.projections
        return to_text @ self._split(p.text_values(l)), to_image @ self._split(p.image_values(v))

    def forward_eager(
        self,
        v: Tensor,
        l: Tensor,
        text_mask: Tensor | None = None,
        prompts: PromptRows | None = None,
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Unfolded attention over the concatenated tokens: the definition, for tests and benchmarks."""
        if prompts is None:
            heads_v, heads_l = self._attend(v, l, text_mask, image_mask)
        elif prompts.gate is None:
            heads_v, heads_l = self._attend(*concatenate_prompts(v, l, text_mask, prompts, image_mask))
        else:
            heads_v, heads_l = self._attend_gated(v, l, text_mask, prompts, image_mask)
        heads_v, heads_l = heads_v[:, :, : v.shape[1]], heads_l[:, :, : l.shape[1]]
        p = self.projections
        return p.image_output(self._merge(heads_v)), p.text_output(self._merge(heads_l))

    def _attend_gated(
        self, v: Tensor, l: Tensor, text_mask: Tensor | None, prompts: PromptRows, image_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert prompts.gate is not None
        gate = prompts.gate[:, None, None]
        heads_v, heads_l = self._attend(v, l, text_mask, image_mask)
        batch = v.shape[0]
        if prompts.text_visible:
            heads_v = heads_v + gate * self._attend(v, prompts.text.expand(batch, -1, -1))[0]
        return heads_v, heads_l + gate * self._attend(prompts.image.expand(batch, -1, -1), l)[1]

    # ---- folded form -----------------------------------------------------------------------------------------

    def absorb(self, l: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text tokens (B, L, l_dim) -> keys A (B, H, L, v_dim), biases c (B, H, L), values V' (B, H, L, v_dim).

        ``x A^T + c`` are the scores of image tokens x; ``P V'`` is their output after the output projection.
        """
        p = self.projections
        keys = self._split(p.key(l)) * self.scale
        query_weight = p.query.weight.unflatten(0, (self.num_heads, self.head_dim))
        query_bias = p.query.bias.unflatten(0, (self.num_heads, self.head_dim))
        out_weight = p.image_output.weight.unflatten(1, (self.num_heads, self.head_dim)).transpose(0, 1)
        bias = (keys @ query_bias[..., None]).squeeze(-1)
        return keys @ query_weight, bias, self._split(p.text_values(l)) @ out_weight.mT

    def _absorb_prompts(self, prompts: PromptRows, batch: int) -> list[Tensor]:
        return [row.expand(batch, *row.shape[1:]) for row in self.absorb(prompts.text[None])]

    def project_text_output(self, u: Tensor, mass: Tensor | float = 1.0) -> Tensor:
        """Attention-weighted image rows u (B, H, L, v_dim) -> text output (B, L, l_dim)."""
        p = self.projections
        value_weight = p.image_values.weight.unflatten(0, (self.num_heads, self.head_dim))
        value_bias = p.image_values.bias.unflatten(0, (self.num_heads, 1, self.head_dim))
        heads = u @ value_weight.mT + (value_bias if isinstance(mass, float) else mass[..., None] * value_bias)
        return p.text_output(self._merge(heads))

    def forward_folded(
        self,
        v: Tensor,
        l: Tensor,
        text_mask: Tensor | None = None,
        prompts: PromptRows | None = None,
        backend: str = "auto",
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same result through :func:`sdpt_ext.ops.bi_attention`: no (N, embed_dim) and no N x L tensor."""
        keys, bias, values = self.absorb(l)
        if text_mask is not None:
            bias = bias.masked_fill(text_mask[:, None] == 0, -torch.inf)
        image_rows = None
        if prompts is not None and prompts.gate is None:
            image_rows = prompts.image
            if prompts.text_visible:
                rows = self._absorb_prompts(prompts, v.shape[0])
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
            image_mask=image_mask,
            dropout_p=dropout,
            seed=seed,
            return_mass=True,
            backend=backend,
        )
        if prompts is not None and prompts.gate is not None:
            y, u, mass = self._add_gated(v, keys, y, u, mass, prompts)
        return y + self.projections.image_output.bias, self.project_text_output(u, mass)

    def _add_gated(
        self, v: Tensor, keys: Tensor, y: Tensor, u: Tensor, mass: Tensor, prompts: PromptRows
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert prompts.gate is not None
        if prompts.text_visible:
            rows = self._absorb_prompts(prompts, v.shape[0])
            y = y + bi_attention(v, rows[0], rows[1], rows[2] * prompts.gate[:, None, None], num_text=0)[0]
        weights = (keys @ prompts.image.mT).softmax(-1)
        gate = prompts.gate[:, None]
        return y, u + gate[..., None] * (weights @ prompts.image), mass + gate


__all__ = ["BACKENDS", "FusionAttention", "Projections", "PromptRows", "concatenate_prompts"]
