"""Models and their processors by name: the shipped nano, official GLIP sizes, folders and hub repositories of GLIP,
Grounding DINO and MM Grounding DINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection, PreTrainedModel

from sdpt_ext.assets import ASSETS

from .glip import GlipConfig, GlipForObjectDetection, GlipProcessor
from .grounding_dino import GroundingDino, loss_with_own_captions
from .grounding_dino_processing import GroundingDinoDetectionProcessor

Detector: TypeAlias = GlipForObjectDetection | GroundingDino
"""A model that the commands tune, measure and run."""

_OFFICIAL = {"glip-tiny": GlipConfig.tiny, "glip-large": GlipConfig.large}


_CLASSES: dict[str, type[PreTrainedModel]] = {
    GlipConfig.model_type: GlipForObjectDetection,
    "grounding-dino": GroundingDinoForObjectDetection,
    "mm-grounding-dino": MMGroundingDinoForObjectDetection,
}


def load_model(name: str | Path, checkpoint: str | Path | None = None) -> tuple[Detector, GlipProcessor]:
    """Load a detector in evaluation mode together with its processor.

    Args:
        name: "nano" (shipped), "glip-tiny" or "glip-large" (need ``checkpoint``), or a folder that ``save_pretrained``
            wrote or a repository of the Hugging Face hub, with a GLIP or a (MM) Grounding DINO.
        checkpoint: an official GLIP checkpoint (.pth) for "glip-tiny" and "glip-large".

    Raises:
        ValueError: ``checkpoint`` is missing where it is needed or given where it is not, or the folder holds a model
            of another architecture.
        OSError: the folder or repository cannot be read.
    """
    name = str(name)
    if name in _OFFICIAL:
        if checkpoint is None:
            raise ValueError(f"{name} needs its official weights: pass --checkpoint FILE.pth (from microsoft/GLIP)")
        return GlipForObjectDetection.from_official(checkpoint, _OFFICIAL[name]()), GlipProcessor.bert()
    if checkpoint is not None:
        raise ValueError(f"--checkpoint goes with --model {' or '.join(_OFFICIAL)}, not with {name!r}")
    if name == "nano":
        return _load_folder(str(ASSETS / "nano"))
    if "/" not in name and not Path(name).is_dir():
        choices = f"nano, {', '.join(_OFFICIAL)}, a folder, or a hub repository"
        raise FileNotFoundError(f"no model {name!r}: choose {choices}")
    return _load_folder(name)


def _load_folder(source: str) -> tuple[Detector, GlipProcessor]:
    values, _ = GlipConfig.get_config_dict(source)
    model_type = values.get("model_type")
    if model_type not in _CLASSES:
        raise ValueError(f"{source} holds a model of type {model_type!r}, not one of {', '.join(_CLASSES)}")
    try:
        loaded: Any = _CLASSES[model_type].from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights in {source} are damaged or do not fit its config.json: {error}") from error
    model, report = loaded
    # What transformers' own models leave over is theirs to judge.
    kinds = ("missing_keys", "mismatched_keys", *(("unexpected_keys",) if model_type == GlipConfig.model_type else ()))
    problems = {kind: report[kind] for kind in kinds if report.get(kind)}
    if problems:
        listed = "\n".join(f"{kind}: {', '.join(map(str, sorted(keys)))}" for kind, keys in problems.items())
        raise ValueError(f"the weights in {source} do not fit its config.json:\n{listed}")
    if model_type == GlipConfig.model_type:
        return model.eval(), GlipProcessor.from_pretrained(source)
    model.loss_function = loss_with_own_captions
    return model.eval(), GroundingDinoDetectionProcessor.from_pretrained(source, model.config.max_text_len)


def image_encoder(model: nn.Module) -> nn.Module | None:
    """The part of a detector that sees pixels alone, whatever the caption; None for other models."""
    if isinstance(model, GlipForObjectDetection):
        return model.backbone
    if isinstance(model, GroundingDinoForObjectDetection | MMGroundingDinoForObjectDetection):
        return model.model.backbone.conv_encoder
    return None


__all__ = ["Detector", "image_encoder", "load_model"]
