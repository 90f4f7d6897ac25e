"""SDPT: synchronous dual prompt tuning (Zhou et al., ECCV 2024).

Each fusion layer gets K unified prototype tokens in its aligned attention space. Inverse projections map them to
the image side and to the text side, where they join the tokens that attend to each other. Nothing else trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from sdpt_ext.nn import FusionAttention, Memo, PromptMap, PromptRows, PrototypeRows
from sdpt_ext.ops.join_prompts import joins_compiled

from .added import state_of
from .freezing import freeze
from .hosts import fusion_layers
from .inverse_projection import InverseProjection
from .prompt_map import prompt_map

Model = TypeVar("Model", bound=nn.Module)

TextPrompts = Literal["visible", "masked"]
Init = Literal["uniform", "normal"]


@dataclass(frozen=True)
class SDPTConfig:
    """What to tune.

    Attributes:
        num_tokens: prototype tokens K per fusion layer.
        layers: indices of the fusion layers that get prompts; None for all.
        text_prompts: "visible" lets image tokens attend to the text prompts (the paper); "masked" hides them, as the
            released code does.
        init: "uniform" draws from (-1, 1) as the released code does, "normal" from N(0, 0.02).
        gate: "zero" multiplies what the prompts contribute by one factor per head that starts at zero, so that
            tuning starts from exactly the zero-shot model; None joins prompts and tokens in one softmax (the paper).
        host_dropout: keep dropout of the frozen host active while training.

    Raises:
        ValueError: a value outside these.
    """

    num_tokens: int = 10
    layers: tuple[int, ...] | None = None
    text_prompts: TextPrompts = "visible"
    init: Init = "uniform"
    gate: Literal["zero"] | None = None
    host_dropout: bool = False

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {self.num_tokens}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        for name, value, choices in (
            ("text_prompts", self.text_prompts, get_args(TextPrompts)),
            ("init", self.init, get_args(Init)),
            ("gate", self.gate, ("zero", None)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["layers"] = None if self.layers is None else list(self.layers)
        return values


class PrototypeTokens(nn.Module):
    """The prompts of one fusion layer: (K, E) tokens shared by both modalities."""

    def __init__(self, attention: FusionAttention, config: SDPTConfig) -> None:
        super().__init__()
        weight = attention.projections.query.weight
        tokens = weight.new_empty(config.num_tokens, weight.shape[0])
        initialise = {"uniform": lambda t: t.uniform_(-1.0, 1.0), "normal": lambda t: t.normal_(std=0.02)}
        self.prototype_tokens = nn.Parameter(initialise[config.init](tokens))
        self.gate = nn.Parameter(weight.new_zeros(attention.num_heads)) if config.gate == "zero" else None
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


def _selected_layers(config: SDPTConfig, count: int) -> tuple[int, ...]:
    layers = tuple(range(count)) if config.layers is None else config.layers
    outside = [layer for layer in layers if not 0 <= layer < count]
    if outside:
        raise ValueError(f"layers {outside} do not exist: this model has fusion layers 0..{count - 1}")
    return layers


def tune(model: Model, config: SDPTConfig | None = None) -> Model:
    """Freeze a detector and add SDPT prompts to its fusion layers, in place.

    Prompts that an earlier call added are replaced.

    Raises:
        TypeError: the model is not a supported host.
        ValueError: ``config.layers`` names layers that the model does not have.
    """
    config = SDPTConfig() if config is None else config
    layers = fusion_layers(model)
    selected = _selected_layers(config, len(layers))
    for layer in layers:
        layer.holder.prompt = None
    freeze(model, host_dropout=config.host_dropout)
    for holder, attention in (layers[index] for index in selected):
        holder.prompt = PrototypeTokens(attention, config)
    model.sdpt_config = config  # type: ignore[assignment]
    return model


def prompt_state(model: nn.Module) -> dict[str, Tensor]:
    """The prompt tensors by their name in the model's state dict, in the order of the layers."""
    return state_of(model, PrototypeTokens)


@contextmanager
def without_prompts(model: nn.Module) -> Iterator[None]:
    """Within the context the fusion layers are those of the untuned host."""
    holders = [layer.holder for layer in fusion_layers(model)]
    prompts = [holder.prompt for holder in holders]
    for holder in holders:
        holder.prompt = None
    try:
        yield
    finally:
        for holder, prompt in zip(holders, prompts):
            holder.prompt = prompt


__all__ = ["PrototypeTokens", "SDPTConfig", "prompt_state", "tune", "without_prompts"]
