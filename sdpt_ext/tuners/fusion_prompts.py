"""What all prompts of fusion layers have in common: their options, their gate, and how a host gets and loses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import nn

from sdpt_ext.nn import FusionAttention

from .configuration import TuningConfig
from .freezing import freeze
from .hosts import FusionLayer, fusion_layers

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config", bound="PromptConfig")


@dataclass(frozen=True)
class PromptConfig(TuningConfig):
    """What to tune.

    Attributes:
        num_tokens: prompts K per fusion layer.
        layers: indices of the fusion layers that get prompts; None for all.
        gate: "zero" multiplies what the prompts contribute by one factor per head that starts at zero, so that
            tuning starts from exactly the zero-shot model; None joins prompts and tokens in one softmax (the papers).
        host_dropout: keep dropout of the frozen host active while training.

    Raises:
        ValueError: a value outside these.
    """

    num_tokens: int = 10
    layers: tuple[int, ...] | None = None
    gate: Literal["zero"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {self.num_tokens}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.gate not in ("zero", None):
            raise ValueError(f"gate must be one of zero, None, got {self.gate!r}")


class FusionPrompts(nn.Module):
    """The prompts of one fusion layer, on the device and in the precision of its weights.

    Attributes:
        gate: (H,) factor per head on what the prompts contribute, or None.
    """

    def __init__(self, attention: FusionAttention, config: PromptConfig) -> None:
        super().__init__()
        weight = attention.projections.query.weight
        self.gate = nn.Parameter(weight.new_zeros(attention.num_heads)) if config.gate == "zero" else None

    def forward(self, attention: FusionAttention) -> Any:
        """The rows that join the layer's image and text tokens."""
        raise NotImplementedError


def gates(model: nn.Module) -> list[nn.Parameter]:
    """The gates of a model's prompts. Their size is a tenth of a token's or less: they want smaller steps."""
    prompts = [module for module in model.modules() if isinstance(module, FusionPrompts)]
    return [prompt.gate for prompt in prompts if prompt.gate is not None]


def add_prompts(model: nn.Module, kind: Callable[[FusionAttention, Config], FusionPrompts], config: Config) -> None:
    """Freeze a detector and add prompts to its fusion layers, in place; those of an earlier call go.

    Raises:
        TypeError: the model is not a supported host.
        ValueError: ``config.layers`` names layers that the model does not have.
    """
    layers = fusion_layers(model)
    selected = _selected(layers, config.layers)
    for layer in layers:
        layer.holder.prompt = None
    freeze(model, host_dropout=config.host_dropout)
    for holder, attention in selected:
        holder.prompt = kind(attention, config).train(model.training)


def _selected(layers: list[FusionLayer], indices: tuple[int, ...] | None) -> list[FusionLayer]:
    if indices is None:
        return layers
    outside = [index for index in indices if not 0 <= index < len(layers)]
    if outside:
        raise ValueError(f"layers {outside} do not exist: this model has fusion layers 0..{len(layers) - 1}")
    return [layers[index] for index in indices]


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


__all__ = ["FusionPrompts", "Model", "PromptConfig", "add_prompts", "gates", "without_prompts"]
