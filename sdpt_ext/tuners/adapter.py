"""Saving, loading and switching off what a method adds to a frozen host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from sdpt_ext.data.atomic import replacing, write_json
from sdpt_ext.models.glip.text import GlipTextEncoder

from .added import emptied, state_of
from .bottleneck import Bottleneck, BottleneckConfig, BottleneckedLinear, adapter
from .configuration import TuningConfig
from .freezing import thawed
from .fusion_prompts import Model, PromptConfig, without_prompts
from .hosts import fusion_layers
from .lora import LoRAConfig, lora, lora_state, without_lora
from .prompts import CoupledPrompts, ImagePrompts, UnifiedPrompts, maple, upt, vpt
from .sdpt import SDPTConfig, prompt_state, tune
from .text_prompts import ContextVectors, CoOpConfig, PositionTable, coop, text_prompt


class AdapterMethod(NamedTuple):
    """A method whose result is a small file beside the host.

    Attributes:
        config: class of its options.
        apply: adds what trains to a model, in place.
        state: what was added, by its names in the model's state dict; empty where nothing was.
        without: context in which the model computes as if nothing had been added.
    """

    config: type[TuningConfig]
    apply: Callable[[Any, Any], object]
    state: Callable[[nn.Module], dict[str, Tensor]]
    without: Callable[[nn.Module], AbstractContextManager[None]]


ADAPTER_METHODS = {
    "sdpt": AdapterMethod(SDPTConfig, tune, prompt_state, without_prompts),
    "vpt": AdapterMethod(PromptConfig, vpt, partial(state_of, kind=ImagePrompts), without_prompts),
    "maple": AdapterMethod(PromptConfig, maple, partial(state_of, kind=CoupledPrompts), without_prompts),
    "upt": AdapterMethod(PromptConfig, upt, partial(state_of, kind=UnifiedPrompts), without_prompts),
    "text_prompt": AdapterMethod(
        TuningConfig,
        text_prompt,
        partial(state_of, kind=PositionTable),
        partial(emptied, holder=GlipTextEncoder, slot="prompt"),
    ),
    "coop": AdapterMethod(
        CoOpConfig,
        coop,
        partial(state_of, kind=ContextVectors),
        partial(emptied, holder=GlipTextEncoder, slot="context"),
    ),
    "adapter": AdapterMethod(
        BottleneckConfig,
        adapter,
        partial(state_of, kind=Bottleneck),
        partial(emptied, holder=BottleneckedLinear, slot="bottleneck"),
    ),
    "lora": AdapterMethod(LoRAConfig, lora, lora_state, without_lora),
}
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_FORMAT = 1
# Norms survive a change of precision to three digits; another checkpoint of the same size differs by more.
_NORM_TOLERANCE = 5e-3


def _describe_host(model: nn.Module) -> dict[str, Any]:
    """What an adapter depends on: the sizes of the fusion layers and the weights its prompts are mapped by."""
    attentions = [layer.attention for layer in fusion_layers(model)]
    query, key = attentions[0].projections.query, attentions[0].projections.key
    weights = [attention.projections.query.weight for attention in attentions]
    return {
        "model_type": cast(PreTrainedConfig, model.config).model_type,
        "hidden_size": query.in_features,
        "text_hidden_size": key.in_features,
        "fusion_dim": query.out_features,
        "fusion_heads": attentions[0].num_heads,
        "num_fusion_layers": len(attentions),
        "projection_norms": [float(f"{weight.float().norm():.6g}") for weight in weights],
    }


def save_adapter(model: nn.Module, directory: str | Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` (with SDPT under 1 MB at K = 10).

    Raises:
        ValueError: nothing was added to the model, or by several methods.
        OSError: the files cannot be written.
    """
    states = {name: state for name, method in ADAPTER_METHODS.items() if (state := method.state(model))}
    if not states:
        raise ValueError(
            "this model has no adapter to save: call sdpt_ext.tune(model) first, or "
            f"sdpt_ext.tuners.apply_method(model, method) with one of {', '.join(ADAPTER_METHODS)}"
        )
    if len(states) > 1:
        raise ValueError(f"this model was tuned by {' and '.join(states)}; an adapter holds what one method added")
    ((name, state),) = states.items()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = cast(Any, getattr(model, f"{name}_config"))
    with replacing(directory / WEIGHTS_NAME) as temporary:
        save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    description = {"format": _FORMAT, "method": name, name: config.to_dict(), "host": _describe_host(model)}
    write_json(directory / CONFIG_NAME, description)


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no adapter: {CONFIG_NAME} is missing")
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); save the adapter again") from error
    if description.get("format") != _FORMAT or description.get("method") not in ADAPTER_METHODS:
        raise ValueError(
            f"{path}: expected method {' or '.join(map(repr, ADAPTER_METHODS))} in format {_FORMAT}, got method "
            f"{description.get('method')!r} in format {description.get('format')!r}; another version of sdpt_ext may "
            "have written it"
        )
    return description


def _check_host(model: nn.Module, saved: dict[str, Any], path: Path) -> None:
    own = _describe_host(model)
    norms, saved_norms = own.pop("projection_norms"), saved.pop("projection_norms")
    differences = [
        f"{key}: adapter {saved.get(key)!r}, model {own[key]!r}" for key in own if saved.get(key) != own[key]
    ]
    if not differences:
        differences = [
            f"weights of fusion layer {i}: norm {theirs} in the adapter's host, {mine} in this model"
            for i, (mine, theirs) in enumerate(zip(norms, saved_norms))
            if abs(mine - theirs) > _NORM_TOLERANCE * theirs
        ]
    if differences:
        listed = "\n  ".join(differences)
        raise ValueError(f"{path} was trained on another host:\n  {listed}\nload the model that it was trained on")


def load_adapter(model: Model, directory: str | Path) -> Model:
    """Add what :func:`save_adapter` wrote to the host that it was trained on, in place.

    Raises:
        FileNotFoundError: the directory holds no adapter.
        ValueError: another host, another format, or tensors that do not fit; the message names what differs.
    """
    directory = Path(directory)
    description = _read_description(directory)
    _check_host(model, description["host"], directory / CONFIG_NAME)
    path = directory / WEIGHTS_NAME
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); save the adapter again") from error
    name = description["method"]
    method = ADAPTER_METHODS[name]
    method.apply(model, method.config(**description[name]))
    _load_state(model, method.state(model), state, path)
    return model


def _load_state(model: nn.Module, expected: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name}: shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit its {CONFIG_NAME}:\n  " + "\n  ".join(problems))
    model.load_state_dict(state, strict=False)


@contextmanager
def adapter_disabled(model: Model) -> Iterator[Model]:
    """Within the context the model is the untuned host, bit for bit, gradients of its parameters included."""
    with ExitStack() as stack:
        for without in {method.without for method in ADAPTER_METHODS.values()}:
            stack.enter_context(without(model))
        stack.enter_context(thawed(model))
        yield model


__all__ = ["ADAPTER_METHODS", "CONFIG_NAME", "WEIGHTS_NAME", "adapter_disabled", "load_adapter", "save_adapter"]
