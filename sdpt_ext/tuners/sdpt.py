"""SDPT: synchronous dual prompt tuning (Zhou et al., ECCV 2024).

Each fusion layer gets K unified prototype tokens in its aligned attention space. Inverse projections map them to
the image side and to the text side, where they join the tokens that attend to each other. Nothing else trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sdpt_ext.nn import FusionAttention, Memo, PromptMap, PromptRows, PrototypeRows
from sdpt_ext.ops.join_prompts import joins_compiled

from .added import state_of
from .fusion_prompts import FusionPrompts, Model, PromptConfig, add_prompts
from .inverse_projection import InverseProjection
from .prompt_map import prompt_map

TextPrompts = Literal["visible", "masked"]
Init = Literal["uniform", "normal"]


@dataclass(frozen=True)
class SDPTConfig(PromptConfig):
    """What to tune: the options of every kind of prompts, and two of SDPT's own.

    Attributes:
        text_prompts: "visible" lets image tokens attend to the text prompts (the paper); "masked" hides them, as the
            released code does.
        init: "uniform" draws from (-1, 1) as the released code does, "normal" from N(0, 0.02).

    Raises:
        ValueError: a value outside these.
    """

    text_prompts: TextPrompts = "visible"
    init: Init = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("text_prompts", get_args(TextPrompts)), ("init", get_args(Init))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")


class PrototypeTokens(FusionPrompts):
    """The prompts of one fusion layer: (K, E) tokens shared by both modalities."""

    def __init__(self, attention: FusionAttention, config: SDPTConfig) -> None:
        super().__init__(attention, config)
        weight = attention.projections.query.weight
        tokens = weight.new_empty(config.num_tokens, weight.shape[0])
        initialise = {"uniform": lambda t: t.uniform_(-1.0, 1.0), "normal": lambda t: t.normal_(std=0.02)}
        self.prototype_tokens = nn.Parameter(initialise[config.init](tokens))
        self.text_visible = config.text_prompts == "visible"
        self.to_image, self.to_text = InverseProjection(), InverseProjection()
        self._constant_rows: Memo[PromptRows] = Memo()
        self._constant_map: Memo[PromptMap] = Memo()

    def forward(self, attention: FusionAttention) -> PromptRows | PrototypeRows:
        """Map the tokens to rows (K, d_v) and (K, d_l) of the layer's two input spaces.

        Where nothing needs a gradient the rows are constants: mapped and absorbed once, until a weight changes. In
        training on a GPU the map itself is the constant, and one launch applies it.
        """
        weights = [tensor for layer in attention.projections for tensor in (layer.weight, layer.bias)]
        if self._trains_alone(weights) and joins_compiled(self.prototype_tokens):
            constant_map = self._constant_map(weights, lambda: prompt_map(attention))
            heads = attention.num_heads
            return PrototypeRows(self.prototype_tokens, constant_map, self.gate, heads, lambda: self._map(attention))
        own = [self.prototype_tokens] if self.gate is None else [self.prototype_tokens, self.gate]
        return self._constant_rows(own + weights, lambda: self._map(attention))

    def _trains_alone(self, weights: list[Tensor]) -> bool:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        trains = self.prototype_tokens.requires_grad and not any(weight.requires_grad for weight in weights)
        return trains and self.text_visible

    def _map(self, attention: FusionAttention) -> PromptRows:
        rows = PromptRows(
            image=self.to_image(attention.projections.query, self.prototype_tokens),
            text=self.to_text(attention.projections.key, self.prototype_tokens),
            text_visible=self.text_visible,
            gate=self.gate,
        )
        return rows._replace(absorbed=attention.absorb_prompts(rows)) if self.text_visible else rows

    def train(self, mode: bool = True) -> PrototypeTokens:
        self._constant_rows.clear()
        return super().train(mode)


def tune(model: Model, config: SDPTConfig | None = None) -> Model:
    """Freeze a detector and add SDPT prompts to its fusion layers, in place.

    Prompts that an earlier call added are replaced.

    Raises:
        TypeError: the model is not a supported host.
        ValueError: ``config.layers`` names layers that the model does not have.
    """
    config = SDPTConfig() if config is None else config
    add_prompts(model, PrototypeTokens, config)
    model.sdpt_config = config  # type: ignore[assignment]
    return model


def prompt_state(model: nn.Module) -> dict[str, Tensor]:
    """The prompt tensors by their name in the model's state dict, in the order of the layers."""
    return state_of(model, PrototypeTokens)


__all__ = ["PrototypeTokens", "SDPTConfig", "prompt_state", "tune"]
