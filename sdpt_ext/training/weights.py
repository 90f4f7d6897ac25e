"""The trained weights of a model on disk: a checkpoint holds what was trained, never the frozen host."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpt_ext.data.atomic import replacing
from sdpt_ext.models.glip import GlipProcessor
from sdpt_ext.models.loading import Detector
from sdpt_ext.training.disk import clear_write_errors, whole_folder
from sdpt_ext.tuners import load_adapter, save_adapter
from sdpt_ext.tuners.adapter import ADAPTER_METHODS

TRAINED_WEIGHTS = "trained_weights.safetensors"
MODEL_FOLDER = "model"


def save_weights(model: Detector, method: str, folder: Path) -> None:
    """Write what `method` trains: an adapter, or else the tensors that require gradients."""
    with clear_write_errors(folder):
        if method in ADAPTER_METHODS:
            save_adapter(model, folder)
            return
        with replacing(folder / TRAINED_WEIGHTS) as temporary:
            save_file({name: tensor.detach().contiguous() for name, tensor in _trained(model).items()}, temporary)


def load_weights(model: Detector, method: str, folder: Path) -> None:
    """Read back what `save_weights` wrote into a model tuned in the same way.

    Raises:
        OSError: the weights are missing.
        ValueError: they belong to another model or method, or are damaged.
    """
    if method in ADAPTER_METHODS:
        load_adapter(model, folder)
        return
    path = folder / TRAINED_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {TRAINED_WEIGHTS}: was it written by a run with --method {method}?")
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); resume from an older checkpoint") from error
    _copy(saved, _trained(model), path)


def export_weights(model: Detector, processor: GlipProcessor, method: str, folder: Path) -> None:
    """Write the result of a run into `folder`: the adapter and its image size, or model and processor in "model"."""
    if method in ADAPTER_METHODS:
        save_weights(model, method, folder)
        processor.config.save(folder)
        return
    with whole_folder(folder / MODEL_FOLDER) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)


def _trained(model: Detector) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def _copy(saved: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> None:
    differing = [name for name in saved.keys() | own.keys() if name not in saved or name not in own]
    differing += [name for name in saved.keys() & own.keys() if saved[name].shape != own[name].shape]
    if differing:
        raise ValueError(
            f"{path} was trained with another model or method; {len(differing)} tensors differ: "
            + ", ".join(sorted(differing)[:5])
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
