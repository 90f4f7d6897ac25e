"""What holds for every method that makes an adapter: what trains, files, the host underneath, and no stale result."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdpt_ext
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.training.feature_cache import FeatureCache, cached_backbone
from sdpt_ext.tuners import (
    BottleneckConfig,
    CoOpConfig,
    LoRAConfig,
    PromptConfig,
    SDPTConfig,
    TuningConfig,
    UnsupportedHostError,
    apply_method,
)
from sdpt_ext.tuners.adapter import ADAPTER_METHODS

from .test_adapter import nano
from .test_grounding_dino import random_host
from .test_sdpt import batch, outputs

CONFIGS: dict[str, Any] = {
    "sdpt": SDPTConfig(num_tokens=3),
    "vpt": PromptConfig(num_tokens=3),
    "maple": PromptConfig(num_tokens=3),
    "upt": PromptConfig(num_tokens=3),
    "text_prompt": TuningConfig(),
    "coop": CoOpConfig(num_tokens=3),
    "adapter": BottleneckConfig(width=3),
    "lora": LoRAConfig(rank=2),
}
LAYERS, IMAGE, TEXT, FUSION, HEADS = 3, 64, 128, 256, 4
GATED = ("vpt", "maple", "upt")


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def bottleneck(width: int) -> int:
    return linear(width, 3) + linear(3, width)


UNIFIED_LAYER = 4 * linear(64, 64) + linear(64, 128) + linear(128, 64) + 2 * (64 + 64)
TRAINED = {
    "sdpt": LAYERS * 3 * FUSION,
    "vpt": LAYERS * 3 * IMAGE,
    "maple": LAYERS * (3 * TEXT + linear(TEXT, IMAGE)),
    "upt": LAYERS * (3 * 64 + UNIFIED_LAYER + linear(64, IMAGE) + linear(64, TEXT)),
    "text_prompt": 256 * TEXT,
    "coop": 3 * TEXT,
    "adapter": sum(depth * bottleneck(width) for depth, width in zip((2, 2, 4, 2), (32, 64, 128, 256)))
    + 2 * bottleneck(TEXT),
}


@pytest.fixture(params=CONFIGS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def added(model: nn.Module, method: str) -> dict[str, Tensor]:
    return ADAPTER_METHODS[method].state(model)


def tuned(method: str, config: Any = None) -> GlipForObjectDetection:
    """A host with an adapter that matters, as if it had been trained."""
    model = apply_method(nano(), method, config or CONFIGS[method])
    with torch.no_grad():
        for value in added(model, method).values():
            value.add_(0.3 * torch.randn_like(value))
    return model


def same(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right))


def test_every_method_is_tested_here() -> None:
    assert CONFIGS.keys() == ADAPTER_METHODS.keys()
    assert all(isinstance(config, ADAPTER_METHODS[method].config) for method, config in CONFIGS.items())


@pytest.mark.parametrize("method", TRAINED)
def test_trained_numbers(method: str) -> None:
    model = nano()
    host = sdpt_ext.trainable_parameters(model)[1]
    apply_method(model, method, CONFIGS[method])
    assert sdpt_ext.trainable_parameters(model) == (TRAINED[method], host + TRAINED[method])


def test_a_step_changes_what_was_added_alone(method: str) -> None:
    model = tuned(method).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**batch()).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == added(model, method).keys()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == gradients.keys()


def test_round_trip(tmp_path: Path, method: str) -> None:
    model = tuned(method).eval()
    sdpt_ext.save_adapter(model, tmp_path)
    loaded = sdpt_ext.load_adapter(nano(), tmp_path)
    assert getattr(loaded, f"{method}_config") == CONFIGS[method]
    assert same(outputs(loaded), outputs(model))
    assert sdpt_ext.trainable_parameters(loaded) == sdpt_ext.trainable_parameters(model)


def test_disabled_adapter_is_the_zero_shot_model(method: str) -> None:
    zero_shot = outputs(nano())
    model = tuned(method)
    with_adapter = outputs(model)
    assert not torch.equal(with_adapter[0], zero_shot[0])
    with sdpt_ext.adapter_disabled(model):
        assert same(outputs(model), zero_shot)
    assert same(outputs(model), with_adapter)


def test_a_second_adapter_replaces_the_first(method: str) -> None:
    zero_shot, model = outputs(nano()), tuned(method)
    names, sizes = added(model, method).keys(), sdpt_ext.trainable_parameters(model)
    apply_method(model, method, CONFIGS[method])
    assert added(model, method).keys() == names
    assert sdpt_ext.trainable_parameters(model) == sizes
    with sdpt_ext.adapter_disabled(model):
        assert same(outputs(model), zero_shot)


def test_prompts_of_another_method_replace_those_in_the_fusion_layers(tmp_path: Path) -> None:
    model = nano()
    for method in ("sdpt", *GATED, "sdpt"):
        apply_method(model, method, CONFIGS[method])
        assert [name for name in ADAPTER_METHODS if added(model, name)] == [method]


def test_another_host_is_named(tmp_path: Path, method: str) -> None:
    sdpt_ext.save_adapter(tuned(method), tmp_path)
    with pytest.raises(ValueError, match="num_fusion_layers: adapter 3, model 2"):
        sdpt_ext.load_adapter(GlipForObjectDetection(GlipConfig.nano(num_head_layers=2)), tmp_path)


def test_images_of_a_batch_do_not_meet(method: str) -> None:
    model, together = tuned(method), batch()
    logits, *others = outputs(model)
    for image, tokens in enumerate((6, 4)):
        with torch.no_grad():
            alone = model(*(together[name][image : image + 1] for name in ("pixel_values", "input_ids")),
                          together["attention_mask"][image : image + 1])  # fmt: skip
        torch.testing.assert_close(logits[image : image + 1, :, :tokens], alone.logits[:, :, :tokens])
        for batched, single in zip(others, (alone.box_deltas, alone.centerness)):
            torch.testing.assert_close(batched[image : image + 1], single)


@pytest.mark.parametrize(
    ("method", "config"),
    [("text_prompt", None), ("adapter", None), *((method, PromptConfig(3, gate="zero")) for method in GATED)],
)
def test_tuning_starts_from_the_zero_shot_model(method: str, config: Any) -> None:
    frozen = outputs(apply_method(nano(), "none"))
    assert same(outputs(apply_method(nano(), method, config)), frozen)


@pytest.mark.parametrize("backend", ["eager", "torch"])
@pytest.mark.parametrize("gate", [None, "zero"])
@pytest.mark.parametrize("method", GATED)
def test_every_backend_agrees(method: str, gate: Any, backend: str) -> None:
    model = tuned(method, PromptConfig(3, gate=gate))
    expected = outputs(model)
    model.set_fusion_backend(backend)
    for actual, wanted in zip(outputs(model), expected):
        torch.testing.assert_close(actual[:, :, :4], wanted[:, :, :4], rtol=1e-3, atol=1e-3)


def test_half_precision(method: str) -> None:
    model = apply_method(nano().to(torch.bfloat16), method, CONFIGS[method])
    assert all(value.dtype == torch.bfloat16 for value in added(model, method).values()) or method == "lora"
    with torch.autocast("cpu", torch.bfloat16):
        assert all(output.isfinite().all() for output in outputs(tuned(method)))


# ---- nothing remembered is served after a change ---------------------------------------------------------------


def change(model: nn.Module, method: str) -> None:
    with torch.no_grad():
        for value in added(model, method).values():
            value.mul_(1.5)


def change_behind_autograd(model: nn.Module, method: str) -> None:
    for value in added(model, method).values():
        value.data.mul_(1.5)


@pytest.mark.parametrize("how", [change, change_behind_autograd])
def test_no_change_is_missed(method: str, how: Any) -> None:
    model = tuned(method).eval()
    before = outputs(model)
    how(model, method)
    after = outputs(model)
    assert not same(after, before)
    assert same(after, outputs(copy.deepcopy(model)))


def test_kept_features_are_the_frozen_backbone_s_alone(method: str) -> None:
    model = tuned(method)
    if method in ("adapter", "lora"):
        with pytest.raises(ValueError, match="trains parts of it"), cached_backbone(model.backbone, FeatureCache(8)):
            pass
        return
    cache, zero_shot = FeatureCache(8), outputs(apply_method(nano(), "none"))
    with cached_backbone(model.backbone, cache):
        before = outputs(model)
        change(model, method)
        after = outputs(model)
    assert cache.hits == 2
    assert not same(after, before)
    torch.testing.assert_close(after, outputs(model), rtol=1e-4, atol=1e-4)
    with cached_backbone(model.backbone, cache), sdpt_ext.adapter_disabled(model):
        torch.testing.assert_close(outputs(model), zero_shot, rtol=1e-4, atol=1e-4)


# ---- options and hosts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (PromptConfig, {"num_tokens": 0}),
        (PromptConfig, {"gate": "open"}),
        (CoOpConfig, {"num_tokens": 0}),
        (BottleneckConfig, {"width": 0}),
    ],
)
def test_bad_options_are_named(config: Any, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        config(**option)


@pytest.mark.parametrize("method", ["text_prompt", "coop", "adapter", "lora"])
def test_methods_for_glip_alone_say_so(method: str) -> None:
    from transformers import GroundingDinoForObjectDetection

    with pytest.raises(UnsupportedHostError, match=f"'{method}' knows.*choose one of sdpt, vpt, maple, upt, none"):
        apply_method(random_host(GroundingDinoForObjectDetection), method)
