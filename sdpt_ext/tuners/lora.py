"""LoRA (Hu et al., 2022): low-rank updates of frozen projections, by PEFT.

Queries and values of the attention in both encoders and in the head's text layers get them. The fusion layers, where
SDPT has its prompts, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from sdpt_ext.models.glip.modeling import GlipForObjectDetection

from .configuration import TuningConfig
from .freezing import freeze

_TARGETS = (
    r"backbone\.body\.swin\..*\.(q_proj|v_proj|query|value)"
    r"|text_encoder\..*\.(query|value)"
    r"|head\.dyhead_tower\..*\.attention\.self\.(query|value)"
)
_MARK = ".lora_"


@dataclass(frozen=True)
class LoRAConfig(TuningConfig):
    """What to tune.

    Attributes:
        rank: of every update.
        alpha: an update is multiplied by ``alpha / rank``.
        host_dropout: keep dropout of the frozen host active while training.

    Raises:
        ValueError: the rank is less than 1.
    """

    rank: int = 8
    alpha: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


def lora(model: GlipForObjectDetection, config: LoRAConfig) -> None:
    """Freeze a detector and add low-rank updates that start at zero, in place; earlier ones are replaced."""
    from peft import LoraConfig, inject_adapter_in_model

    freeze(model)
    vars(model).pop("peft_config", None)  # that of updates which these replace
    inject_adapter_in_model(LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=_TARGETS), model)
    freeze(model, lambda name: _MARK in name, config.host_dropout)
    model.lora_config = config  # type: ignore[assignment]


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the updates by their name in the model's state dict."""
    return {name: value for name, value in model.state_dict().items() if _MARK in name}


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Within the context the projections are those of the frozen host, bit for bit."""
    if not any(_MARK in name for name, _ in model.named_parameters()):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


__all__ = ["LoRAConfig", "lora", "lora_state", "without_lora"]
