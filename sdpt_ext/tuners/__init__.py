"""Ways to adapt a detector: every method prepares a model in place and marks what trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdpt_ext.models.glip.modeling import GlipForObjectDetection

from . import baselines
from .adapter import ADAPTER_METHODS, adapter_disabled, load_adapter, save_adapter
from .bottleneck import BottleneckConfig
from .configuration import TuningConfig
from .freezing import trainable_parameters
from .fusion_prompts import Model, PromptConfig, gates
from .lora import LoRAConfig
from .sdpt import SDPTConfig, tune
from .text_prompts import CoOpConfig

METHODS: dict[str, Callable[[Any, Any], object]] = {
    **{name: method.apply for name, method in ADAPTER_METHODS.items()},
    "full": baselines.full,
    "linear_probe": baselines.linear_probe,
    "bitfit": baselines.bitfit,
    "none": baselines.none,
}
_FOR_EVERY_HOST = ("sdpt", "vpt", "maple", "upt", "none")


class UnsupportedHostError(TypeError, ValueError):
    """The method does not know the layers of this kind of model; the message names those that do."""


def config_class(method: str) -> type[TuningConfig]:
    """The class of a method's options."""
    return ADAPTER_METHODS[method].config if method in ADAPTER_METHODS else TuningConfig


def apply_method(model: Model, method: str, config: TuningConfig | None = None) -> Model:
    """Prepare ``model`` for a tuning method in place.

    Args:
        config: the method's options, of its :func:`config_class`.

    Raises:
        UnsupportedHostError: the method does not know this kind of model.
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if method not in _FOR_EVERY_HOST and not isinstance(model, GlipForObjectDetection):
        raise UnsupportedHostError(
            f"method {method!r} knows the layers of GlipForObjectDetection alone, not those of {type(model).__name__}; "
            f"choose one of {', '.join(_FOR_EVERY_HOST)}"
        )
    METHODS[method](model, config_class(method)() if config is None else config)
    return model


__all__ = [
    "METHODS",
    "BottleneckConfig",
    "CoOpConfig",
    "LoRAConfig",
    "PromptConfig",
    "SDPTConfig",
    "TuningConfig",
    "UnsupportedHostError",
    "adapter_disabled",
    "apply_method",
    "config_class",
    "gates",
    "load_adapter",
    "save_adapter",
    "trainable_parameters",
    "tune",
]
