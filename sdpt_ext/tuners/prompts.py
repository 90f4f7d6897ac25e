"""Prompts in the input spaces of the fusion layers: what SDPT's prompts in the aligned space are compared with.

Every fusion layer gets K prompts of its own, and nothing of the host trains:

- VPT, deep (Jia et al., 2022): rows on the image side alone.
- MaPLe (Khattak et al., 2023): rows on the text side, and a trained linear layer that makes the image's from them.
- UPT (Zang et al., 2022): tokens that pass through a small transformer layer together, then one linear layer per side.
"""

from __future__ import annotations

from torch import nn

from sdpt_ext.nn import FusionAttention, PromptRows

from .fusion_prompts import FusionPrompts, Model, PromptConfig, add_prompts

_INITIAL_STD = 0.02
# UPT's transformer: beside its two linear layers it adds 34,000 numbers per fusion layer.
_UNIFIED_WIDTH, _UNIFIED_HEADS, _UNIFIED_FEED_FORWARD = 64, 4, 128


class ImagePrompts(FusionPrompts):
    """VPT: the text attends to (K, d_v) rows beside the image."""

    def __init__(self, attention: FusionAttention, config: PromptConfig) -> None:
        super().__init__(attention, config)
        self.image = _random_rows(attention.projections.query, config.num_tokens)

    def forward(self, attention: FusionAttention) -> PromptRows:
        hidden = self.image.new_zeros(len(self.image), attention.projections.key.in_features)
        return PromptRows(image=self.image, text=hidden, text_visible=False, gate=self.gate)


class CoupledPrompts(FusionPrompts):
    """MaPLe: (K, d_l) text rows and the linear layer that couples the image rows to them."""

    def __init__(self, attention: FusionAttention, config: PromptConfig) -> None:
        super().__init__(attention, config)
        query, key = attention.projections.query, attention.projections.key
        self.text = _random_rows(key, config.num_tokens)
        self.to_image = _linear_like(query, key.in_features, query.in_features)

    def forward(self, attention: FusionAttention) -> PromptRows:
        return PromptRows(image=self.to_image(self.text), text=self.text, gate=self.gate)


class UnifiedPrompts(FusionPrompts):
    """UPT: K tokens that attend to each other before they are mapped to both sides."""

    def __init__(self, attention: FusionAttention, config: PromptConfig) -> None:
        super().__init__(attention, config)
        query, key = attention.projections.query, attention.projections.key
        weight = query.weight
        self.tokens = nn.Parameter(weight.new_empty(config.num_tokens, _UNIFIED_WIDTH).normal_(std=_INITIAL_STD))
        self.transformer = nn.TransformerEncoderLayer(
            _UNIFIED_WIDTH,
            _UNIFIED_HEADS,
            _UNIFIED_FEED_FORWARD,
            dropout=0.0,
            batch_first=True,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.to_image = _linear_like(query, _UNIFIED_WIDTH, query.in_features)
        self.to_text = _linear_like(query, _UNIFIED_WIDTH, key.in_features)

    def forward(self, attention: FusionAttention) -> PromptRows:
        (tokens,) = self.transformer(self.tokens[None])
        return PromptRows(image=self.to_image(tokens), text=self.to_text(tokens), gate=self.gate)


def _random_rows(projection: nn.Linear, count: int) -> nn.Parameter:
    return nn.Parameter(projection.weight.new_empty(count, projection.in_features).normal_(std=_INITIAL_STD))


def _linear_like(projection: nn.Linear, inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, device=projection.weight.device, dtype=projection.weight.dtype)


def vpt(model: Model, config: PromptConfig) -> None:
    """Freeze a detector and add image-side prompts to its fusion layers, in place; earlier prompts are replaced.

    Raises:
        TypeError: the model is not a supported host.
        ValueError: ``config.layers`` names layers that the model does not have.
    """
    add_prompts(model, ImagePrompts, config)
    model.vpt_config = config  # type: ignore[assignment]


def maple(model: Model, config: PromptConfig) -> None:
    """As :func:`vpt`, with text-side prompts and image-side prompts that a linear layer makes of them."""
    add_prompts(model, CoupledPrompts, config)
    model.maple_config = config  # type: ignore[assignment]


def upt(model: Model, config: PromptConfig) -> None:
    """As :func:`vpt`, with prompts of both sides that a small transformer makes of shared tokens."""
    add_prompts(model, UnifiedPrompts, config)
    model.upt_config = config  # type: ignore[assignment]


__all__ = ["CoupledPrompts", "ImagePrompts", "UnifiedPrompts", "maple", "upt", "vpt"]
