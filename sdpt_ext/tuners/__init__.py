"""Ways to adapt a detector: every method prepares a model in place and marks what trains."""

from __future__ import annotations

from collections.abc import Callable

from sdpt_ext.models.glip.modeling import GlipForObjectDetection

from . import baselines
from .adapter import adapter_disabled, load_adapter, save_adapter
from .freezing import trainable_parameters
from .sdpt import SDPTConfig, tune

METHODS: dict[str, Callable[[GlipForObjectDetection, SDPTConfig], object]] = {
    "sdpt": tune,
    "full": baselines.full,
    "linear_probe": baselines.linear_probe,
    "bitfit": baselines.bitfit,
    "none": baselines.none,
}


def apply_method(
    model: GlipForObjectDetection, method: str, config: SDPTConfig | None = None
) -> GlipForObjectDetection:
    """Prepare ``model`` for a tuning method in place; ``config`` holds SDPT's options and ``host_dropout``.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    METHODS[method](model, SDPTConfig() if config is None else config)
    return model


__all__ = [
    "METHODS",
    "SDPTConfig",
    "adapter_disabled",
    "apply_method",
    "load_adapter",
    "save_adapter",
    "trainable_parameters",
    "tune",
]
