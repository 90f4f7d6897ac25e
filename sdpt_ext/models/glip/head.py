"""GLIP's detection head: fusion, BERT and DyConv layers in turn, then box, centerness and token predictions."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpt_ext.nn import BiAttentionBlock, DyConv

from .bert_layer import ClampedBertLayer
from .configuration import GlipConfig

_PRIOR_PROBABILITY = 0.01
LOGIT_LIMIT = 50_000.0


class HeadOutput(NamedTuple):
    """Predictions for the N positions of all levels and the T text tokens.

    Attributes:
        logits: (B, N, T) alignment of positions with tokens.
        box_deltas: (B, N, 4).
        centerness: (B, N, 1) logits.
        features: the tower's visual output, one (B, C, h, w) map per level.
        hidden: (B, T, C_text) the tower's text output.
    """

    logits: Tensor
    box_deltas: Tensor
    centerness: Tensor
    features: list[Tensor]
    hidden: Tensor


class Scale(nn.Module):
    """A learnable factor per pyramid level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class VLFuse(nn.Module):
    """Wrapper that gives the fusion block its official name."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.b_attn = BiAttentionBlock(
            config.hidden_size,
            config.text_hidden_size,
            config.fusion_dim,
            config.fusion_heads,
            init_values=1.0 / config.num_head_layers,
            dropout=float(config.fusion_dropout),
        )


def flatten_levels(features: list[Tensor]) -> Tensor:
    """Maps (B, C, h, w), finest first -> (B, N, C), row-major within a level."""
    return torch.cat([feature.flatten(2).mT for feature in features], dim=1)


def split_levels(tokens: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """(B, N, C) -> maps (B, C, h, w); the inverse of :func:`flatten_levels`."""
    parts = tokens.split([h * w for h, w in sizes], dim=1)
    # In this order a batch of one, too, has the strides by which convolutions know a channels-last map.
    return [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, sizes)]


class VLDyHead(nn.Module):
    """The fused dynamic head; parameter names below it are GLIP's below ``rpn.head``."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        width, text_width = config.hidden_size, config.text_hidden_size
        self.dyhead_tower = nn.ModuleList()
        for _ in range(config.num_head_layers):
            self.dyhead_tower.append(VLFuse(config))
            self.dyhead_tower.append(ClampedBertLayer(config.text_config))
            self.dyhead_tower.append(DyConv(width, config.group_norm_groups))
        self.cls_logits = nn.Conv2d(width, config.num_class_logits, 1)
        self.bbox_pred = nn.Conv2d(width, 4, 1)
        self.centerness = nn.Conv2d(width, 1, 1)
        self.dot_product_projection_text = nn.Linear(text_width, width)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(text_width))
        self.bias0 = nn.Parameter(torch.zeros(1))
        self.scales = nn.ModuleList(Scale() for _ in config.anchor_strides)
        # Official checkpoints carry this layer, but its loss has weight zero and its output is never read.
        self.cls_logits.requires_grad_(False)
        self.reset_parameters(float(config.initializer_range))

    def reset_parameters(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=std)
                nn.init.constant_(cast(Tensor, module.bias), 0.0)
        nn.init.constant_(self.bias0, -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY))

    @property
    def fusion_blocks(self) -> list[BiAttentionBlock]:
        """The fusion blocks, first layer first."""
        return [layer.b_attn for layer in self.dyhead_tower if isinstance(layer, VLFuse)]

    def forward(self, features: list[Tensor], hidden: Tensor, attention_mask: Tensor) -> HeadOutput:
        """Five maps (B, C, h, w), text states (B, T, C_text) and their mask (B, T) -> predictions."""
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        for layer in self.dyhead_tower:
            if isinstance(layer, VLFuse):
                tokens, hidden = layer.b_attn(flatten_levels(features), hidden, attention_mask)
                features = split_levels(tokens, sizes)
            elif isinstance(layer, DyConv):
                features = layer(features)
            else:
                hidden = layer(hidden, attention_mask)
        boxes = [scale(self.bbox_pred(feature)) for scale, feature in zip(self.scales, features)]
        centerness = [self.centerness(feature) for feature in features]
        logits = self.token_logits(flatten_levels(features), hidden)
        return HeadOutput(logits, flatten_levels(boxes), flatten_levels(centerness), features, hidden)

    def token_logits(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """(B, N, C) image tokens . (B, T, C_text) text states -> (B, N, T) alignment logits."""
        embedding = F.normalize(hidden, p=2.0, dim=-1)
        projected = self.dot_product_projection_text(embedding / 2.0)
        bias = embedding @ self.bias_lang + self.bias0
        logits = tokens @ projected.mT / self.log_scale.exp() + bias[:, None]
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


__all__ = ["LOGIT_LIMIT", "HeadOutput", "Scale", "VLDyHead", "VLFuse", "flatten_levels", "split_levels"]
