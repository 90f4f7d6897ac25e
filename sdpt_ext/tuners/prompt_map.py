"""The map from prototype tokens to everything that a frozen fusion layer makes of them."""

from __future__ import annotations

import copy

import torch

from sdpt_ext.nn import FusionAttention, Projections, PromptMap

from .inverse_projection import InverseProjection


class _InDouble(FusionAttention):
    """The same attention in float64."""

    def __init__(self, attention: FusionAttention) -> None:
        self.num_heads, self.head_dim, self.scale = attention.num_heads, attention.head_dim, attention.scale
        self._projections = Projections(*(copy.deepcopy(layer).double() for layer in attention.projections))

    @property
    def projections(self) -> Projections:
        return self._projections


@torch.no_grad()
def prompt_map(attention: FusionAttention) -> PromptMap:
    """Both inverse projections (SDPT, section 3.3) and what absorbs the projections of the image, as one affine map.

    It is found by what becomes of the origin and of the unit vectors, in float64, and takes ``F E`` numbers: 36 MB for
    a layer of GLIP in float32.
    """
    exact, weight = _InDouble(attention), attention.projections.query.weight
    basis = torch.eye(weight.shape[0], dtype=torch.float64, device=weight.device)
    tokens = torch.cat([torch.zeros_like(basis[:1]), basis])
    image = InverseProjection()(exact.projections.query, tokens)
    text = exact.absorb(InverseProjection()(exact.projections.key, tokens)[None])
    by_token = [rows.squeeze(0).movedim(1, 0).flatten(1) for rows in text]
    outputs = torch.cat([image, *by_token], dim=1)
    return PromptMap((outputs[1:] - outputs[0]).mT.to(weight.dtype).contiguous(), outputs[0].to(weight.dtype))


__all__ = ["prompt_map"]
