"""Adapters (Houlsby et al., 2019): small trained bottlenecks behind the feed-forward layers of both frozen encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertLayer

from sdpt_ext.models.glip.backbone import StochasticMLP
from sdpt_ext.models.glip.modeling import GlipForObjectDetection

from .configuration import TuningConfig
from .freezing import freeze


@dataclass(frozen=True)
class BottleneckConfig(TuningConfig):
    """What to tune.

    Attributes:
        width: of every bottleneck.
        host_dropout: keep dropout of the frozen host active while training.

    Raises:
        ValueError: the width is less than 1.
    """

    width: int = 8

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")


class Bottleneck(nn.Module):
    """(..., C) -> (..., C): ``x + up(gelu(down(x)))``, the identity at the start."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.down = nn.Linear(layer.out_features, width, **like)
        self.up = nn.Linear(width, layer.out_features, **like)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(functional.gelu(self.down(x)))


class BottleneckedLinear(nn.Module):
    """A linear layer, under the name that PEFT gives it too, and the bottleneck behind it.

    Attributes:
        bottleneck: a :class:`Bottleneck`, or None.
    """

    def __init__(self, base_layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck: nn.Module | None = Bottleneck(base_layer, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.base_layer(x)
        return x if self.bottleneck is None else self.bottleneck(x)


def adapter(model: GlipForObjectDetection, config: BottleneckConfig) -> None:
    """Freeze a detector and put a bottleneck behind every feed-forward layer of BERT and Swin, in place.

    They stand before the residual connection. Earlier ones are replaced.
    """
    freeze(model, host_dropout=config.host_dropout)
    for owner, name in _feed_forward_outputs(model):
        layer = getattr(owner, name)
        base_layer = layer.base_layer if isinstance(layer, BottleneckedLinear) else layer
        setattr(owner, name, BottleneckedLinear(base_layer, config.width))
    model.adapter_config = config  # type: ignore[assignment]


def _feed_forward_outputs(model: GlipForObjectDetection) -> list[tuple[nn.Module, str]]:
    """The last linear layers of the feed-forward parts, each by the module that holds it and its name there."""
    swin = [module for module in model.backbone.modules() if isinstance(module, StochasticMLP)]
    bert = [cast(BertLayer, layer).output for layer in model.text_encoder.model.encoder.layer]
    return [*((mlp, "fc2") for mlp in swin), *((output, "dense") for output in bert)]


__all__ = ["Bottleneck", "BottleneckConfig", "BottleneckedLinear", "adapter"]
