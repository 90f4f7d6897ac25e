"""Attention in both directions between image and text tokens, whatever a detector calls its projections.

GLIP's fusion layers and Grounding DINO's hold the same six linear layers under different names. Both get the textbook
form and the folded form of their attention, with and without prompts, from here.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from sdpt_ext.ops.bi_attention import bi_attention, bi_attention_residual, has_residual

from .fusion_inputs import AbsorbedText, FusionInputs, Projections, PromptRows
from .prototype_rows import PrototypeRows

Prompts: TypeAlias = PromptRows | PrototypeRows

BACKENDS = ("auto", "ext", "torch", "eager")
_SCORE_LIMIT = 50_000.0
_MASKED_SCORE = -9e15


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over text with GLIP's additive mask: the mask value itself (+1) on real tokens, -9e15 on padding."""
    if mask is not None:
        scores = scores + mask.to(scores.dtype).masked_fill(mask == 0, _MASKED_SCORE)[:, None, None]
    return scores.softmax(-1)


def _adds_to_image(prompts: Prompts | None) -> bool:
    """Whether they are gated, so that the image attends to them apart from the text, and visible to it."""
    return prompts is not None and prompts.gate is not None and prompts.text_visible


def _scaled_residual(x: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    """``x + gamma * delta``, in the memory of ``delta`` where no gradient needs it: new memory costs more than that."""
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, gamma, delta))
    reuses_memory = not wants_gradient and delta.dtype == x.dtype
    return torch.addcmul(x, gamma, delta, out=delta if reuses_memory else None)


class FusionAttention:
    """Mix-in for a module that names its six projections."""

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
        prompts: Prompts | None = None,
        backend: str = "auto",
        image_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What each side gathers from the other, in the shapes of v and l.

        Args:
            v, l: (B, N, d_v) image and (B, L, d_l) text tokens.
            text_mask, image_mask: (B, L) and (B, N), non-zero on real tokens; None where all are real.
            prompts: rows that join the tokens of every image.
            backend: "eager" for the textbook form, else that of :func:`sdpt_ext.ops.bi_attention`.

        Raises:
            ValueError: an unknown backend.
        """
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
        inputs = FusionInputs(v, l, text_mask, image_mask, prompts)
        return self._forward_eager(inputs) if backend == "eager" else self._forward_folded(inputs, backend)

    def add_attended(
        self,
        v: Tensor,
        norm: nn.LayerNorm,
        gamma: Tensor,
        l: Tensor,
        text_mask: Tensor | None = None,
        prompts: Prompts | None = None,
        backend: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        """``norm(v) + gamma * delta_v`` and ``delta_l``, with the deltas of :meth:`attend` at ``norm(v)``.

        Where no gradient is recorded the compiled operator does it all in one pass over the image.

        Args:
            v: (B, N, d_v) image tokens.
            gamma: (d_v,) scale of what the image gathers.
        """
        at_rest = not (self.training and self.dropout) and not torch.is_grad_enabled()
        if backend != "eager" and at_rest and has_residual(v, norm, gamma, backend):
            return self._add_folded(FusionInputs(v, l, text_mask, None, prompts), norm, gamma, backend)
        v = norm(v)
        delta_v, delta_l = self.attend(v, l, text_mask, prompts, backend)
        return v + gamma * delta_v if backend == "eager" else _scaled_residual(v, gamma, delta_v), delta_l

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def _merge(self, heads: Tensor) -> Tensor:
        return heads.transpose(-3, -2).flatten(-2)

    # ---- textbook form ---------------------------------------------------------------------------------------

    def attention_weights(self, inputs: FusionInputs) -> tuple[Tensor, Tensor]:
        """Weights (B, H, N, L) of image tokens over the text and (B, H, L, N) of text tokens over the image."""
        p = self.projections
        scores = self._split(p.query(inputs.v) * self.scale) @ self._split(p.key(inputs.l)).mT
        scores = scores.clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
        to_image = (scores.mT - scores.mT.amax(-1, keepdim=True)).clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
        if inputs.image_mask is not None:
            to_image = to_image.masked_fill(inputs.image_mask[:, None, None] == 0, -torch.inf)
        return _masked_softmax(scores, inputs.text_mask), to_image.softmax(-1)

    def _attend_heads(self, inputs: FusionInputs) -> tuple[Tensor, Tensor]:
        to_text, to_image = self.attention_weights(inputs)
        to_text = nn.functional.dropout(to_text, self.dropout, self.training)
        to_image = nn.functional.dropout(to_image, self.dropout, self.training)
        p = self.projections
        return to_text @ self._split(p.text_values(inputs.l)), to_image @ self._split(p.image_values(inputs.v))

    def _forward_eager(self, inputs: FusionInputs) -> tuple[Tensor, Tensor]:
        """Unfolded attention over the joined tokens: the definition, for tests and benchmarks."""
        gated = inputs.prompts is not None and inputs.prompts.gate is not None
        joined = inputs._replace(prompts=None) if gated else inputs.with_prompts_as_tokens()
        heads_v, heads_l = self._attend_heads(joined)
        heads_v, heads_l = heads_v[:, :, : inputs.v.shape[1]], heads_l[:, :, : inputs.l.shape[1]]
        if gated:
            added_v, added_l = self._attend_gated_prompts(inputs)
            heads_v, heads_l = heads_v + added_v, heads_l + added_l
        p = self.projections
        return p.image_output(self._merge(heads_v)), p.text_output(self._merge(heads_l))

    def _attend_gated_prompts(self, inputs: FusionInputs) -> tuple[Tensor | float, Tensor]:
        """What the prompts alone add to the heads of image and text."""
        v, l, prompts = inputs.v, inputs.l, inputs.prompts
        assert prompts is not None and prompts.gate is not None
        gate, batch = prompts.gate[:, None, None], v.shape[0]
        from_text: Tensor | float = 0.0
        if prompts.text_visible:
            from_text = gate * self._attend_heads(FusionInputs(v, prompts.text.expand(batch, -1, -1)))[0]
        return from_text, gate * self._attend_heads(FusionInputs(prompts.image.expand(batch, -1, -1), l))[1]

    # ---- folded form -----------------------------------------------------------------------------------------

    def absorb(self, l: Tensor) -> AbsorbedText:
        """Text tokens (B, L, d_l) with the query and output projections of the image absorbed."""
        p = self.projections
        keys = self._split(p.key(l)) * self.scale
        query_weight = p.query.weight.unflatten(0, (self.num_heads, self.head_dim))
        query_bias = p.query.bias.unflatten(0, (self.num_heads, self.head_dim))
        out_weight = p.image_output.weight.unflatten(1, (self.num_heads, self.head_dim)).transpose(0, 1)
        bias = (keys @ query_bias[..., None]).squeeze(-1)
        return AbsorbedText(keys @ query_weight, bias, self._split(p.text_values(l)) @ out_weight.mT)

    def absorb_prompts(self, prompts: Prompts) -> AbsorbedText:
        """The text rows of the prompts as a batch of one, gate included."""
        if prompts.absorbed is not None:
            return prompts.absorbed
        rows = self.absorb(prompts.text[None])
        return rows if prompts.gate is None else rows._replace(values=rows.values * prompts.gate[:, None, None])

    def project_text_output(self, u: Tensor, mass: Tensor | float = 1.0) -> Tensor:
        """Attention-weighted image rows u (B, H, L, d_v) -> text output (B, L, d_l)."""
        p = self.projections
        value_weight = p.image_values.weight.unflatten(0, (self.num_heads, self.head_dim))
        value_bias = p.image_values.bias.unflatten(0, (self.num_heads, 1, self.head_dim))
        heads = u @ value_weight.mT + (value_bias if isinstance(mass, float) else mass[..., None] * value_bias)
        return p.text_output(self._merge(heads))

    def _attended_text(self, inputs: FusionInputs, tokens: AbsorbedText) -> tuple[AbsorbedText, Tensor | None]:
        """The text that the image attends to, and the rows that the text attends to beside the image."""
        text, prompts = tokens.masked(inputs.text_mask), inputs.prompts
        if prompts is None or prompts.gate is not None:
            return text, None
        if isinstance(prompts, PrototypeRows):
            return prompts.join(text)
        return text.followed_by(self.absorb_prompts(prompts)) if prompts.text_visible else text, prompts.image

    def _forward_folded(self, inputs: FusionInputs, backend: str) -> tuple[Tensor, Tensor]:
        """The same result through :func:`sdpt_ext.ops.bi_attention`: no (N, embed_dim) and no N x L tensor."""
        tokens = self.absorb(inputs.l)
        text, rows = self._attended_text(inputs, tokens)
        dropout = self.dropout if self.training else 0.0
        y, u, mass = bi_attention(
            inputs.v,
            *text,
            prompts=rows,
            num_text=inputs.l.shape[1],
            image_mask=inputs.image_mask,
            dropout_p=dropout,
            seed=int(torch.randint(2**31, ())) if dropout else 0,
            return_mass=True,
            backend=backend,
        )
        if _adds_to_image(inputs.prompts):
            y = y + self._gated_image(inputs, backend)
        bias = self.projections.image_output.bias.to(y.dtype)  # under autocast, as in a linear layer
        return y.add_(bias), self._gated_text(inputs, tokens, u, mass)

    def _add_folded(self, raw: FusionInputs, norm: nn.LayerNorm, gamma: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        """The normalised image tokens with their scaled delta, and the delta of the text."""
        tokens = self.absorb(raw.l)
        text, rows = self._attended_text(raw, tokens)
        text = text._replace(values=text.values * gamma)
        offset = gamma * self.projections.image_output.bias
        image, u, mass = bi_attention_residual(raw.v, norm, *text, offset, prompts=rows, num_text=raw.l.shape[1])
        if _adds_to_image(raw.prompts):
            image.addcmul_(gamma, self._gated_image(raw._replace(v=norm(raw.v)), backend))
        return image, self._gated_text(raw, tokens, u, mass)

    def _gated_image(self, inputs: FusionInputs, backend: str) -> Tensor:
        """What gated prompts that the image sees add to its output."""
        assert inputs.prompts is not None
        rows = self.absorb_prompts(inputs.prompts).expand(len(inputs.v))
        return bi_attention(inputs.v, *rows, num_text=0, backend=backend)[0]

    def _gated_text(self, inputs: FusionInputs, tokens: AbsorbedText, u: Tensor, mass: Tensor) -> Tensor:
        """The text output, with what gated prompts add to it."""
        prompts = inputs.prompts
        if prompts is not None and prompts.gate is not None:
            gate = prompts.gate[:, None]
            weights = (tokens.keys @ prompts.image.mT).softmax(-1)
            u, mass = u + gate[..., None] * (weights @ prompts.image), mass + gate
        return self.project_text_output(u, mass)


__all__ = ["BACKENDS", "FusionAttention"]
