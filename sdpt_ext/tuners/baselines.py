"""Tuning methods that need no new parameters: each is a choice of what trains."""

from __future__ import annotations

from sdpt_ext.models.glip.modeling import GlipForObjectDetection

from .configuration import TuningConfig
from .freezing import freeze

_PREDICTORS = (
    "head.bbox_pred.",
    "head.centerness.",
    "head.dot_product_projection_text.",
    "head.scales.",
    "head.log_scale",
    "head.bias_lang",
    "head.bias0",
)


def full(model: GlipForObjectDetection, config: TuningConfig) -> None:
    """Fine-tune everything but the classification layer that no output depends on and ``GlipConfig.frozen_stages``."""
    stages = _swin_parts(model.config.frozen_stages)
    frozen = ("head.cls_logits.", *(f"{stage}." for stage in stages))
    freeze(model, lambda name: not name.startswith(frozen), host_dropout=True, at_rest=stages)


def _swin_parts(count: int) -> list[str]:
    """Names of the patch embedding and the stages behind it, ``count`` in all."""
    swin = "backbone.body.swin"
    return [f"{swin}.embeddings", *(f"{swin}.encoder.layers.{stage}" for stage in range(count - 1))][:count]


def linear_probe(model: GlipForObjectDetection, config: TuningConfig) -> None:
    """Train the prediction layers on frozen features."""
    freeze(model, lambda name: name.startswith(_PREDICTORS), config.host_dropout)


def bitfit(model: GlipForObjectDetection, config: TuningConfig) -> None:
    """Train the bias vectors alone (Ben Zaken et al., 2022)."""
    freeze(model, lambda name: name.endswith("bias") and "cls_logits" not in name, config.host_dropout)


def none(model: GlipForObjectDetection, config: TuningConfig) -> None:
    """Train nothing: the zero-shot model."""
    freeze(model)


__all__ = ["bitfit", "full", "linear_probe", "none"]
