"""The BERT layer of GLIP's head: that of transformers with the official clamps."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.bert.modeling_bert import BertLayer

_LIMIT = 50_000.0


def _clamp(x: Tensor) -> Tensor:
    return x.clamp(-_LIMIT, _LIMIT)


class ClampedBertLayer(BertLayer):
    """BERT encoder layer (Devlin et al., 2019) whose scores and feed-forward activations stay within +-50,000.

    Weights trained in half precision may rely on the limits. The attention's output has none.
    """

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T, C) text states and their (B, T) mask, non-zero on real tokens -> (B, T, C)."""
        attended = self.attention.output(self._attend(hidden, attention_mask), hidden)
        inner = _clamp(self.intermediate.intermediate_act_fn(_clamp(self.intermediate.dense(attended))))
        outer = self.output.dropout(_clamp(self.output.dense(inner)))
        return _clamp(self.output.LayerNorm(outer + attended))

    def _attend(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        layer = self.attention.self
        heads = (-1, layer.attention_head_size)
        query, key, value = (
            projection(hidden).unflatten(-1, heads).transpose(1, 2)
            for projection in (layer.query, layer.key, layer.value)
        )
        scores = _clamp(query @ key.mT * layer.attention_head_size**-0.5)
        scores = scores.masked_fill((attention_mask == 0)[:, None, None], torch.finfo(scores.dtype).min)
        return (layer.dropout(scores.softmax(-1)) @ value).transpose(1, 2).flatten(2)


__all__ = ["ClampedBertLayer"]
