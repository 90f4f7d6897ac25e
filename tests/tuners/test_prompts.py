"""VPT, MaPLe and UPT: which side sees which rows, and transformers' Grounding DINO models as their hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sdpt_ext
from sdpt_ext.tuners import PromptConfig, apply_method
from sdpt_ext.tuners.adapter import ADAPTER_METHODS
from sdpt_ext.tuners.hosts import fusion_layers

from .test_grounding_dino import HOSTS, assert_folded_equals_eager, loss, outputs, random_host, same

METHODS = ("vpt", "maple", "upt")
TEXT = IMAGE = 32
TRANSFORMER = 4 * (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + 4 * 64
TRAINED_PER_LAYER = {
    "vpt": 3 * IMAGE,
    "maple": 3 * TEXT + TEXT * IMAGE + IMAGE,
    "upt": 3 * 64 + TRANSFORMER + 64 * (IMAGE + TEXT) + IMAGE + TEXT,
}


def prompted(method: str, host: Any, gate: Any = None) -> Any:
    model = apply_method(host, method, PromptConfig(3, gate=gate))
    with torch.no_grad():
        for value in ADAPTER_METHODS[method].state(model).values():
            value.add_(0.3 * torch.randn_like(value))
    return model


@pytest.mark.parametrize("method", METHODS)
def test_rows(method: str) -> None:
    for layer in fusion_layers(prompted(method, random_host(HOSTS[0]))):
        rows = layer.holder.prompt(layer.attention)
        assert (rows.image.shape, rows.text.shape) == ((3, IMAGE), (3, TEXT))
        assert rows.text_visible == (method != "vpt") and rows.gate is None


def test_the_image_does_not_see_prompts_of_its_own_side() -> None:
    attention = fusion_layers(prompted("vpt", random_host(HOSTS[0])))[0].attention
    v, l = torch.randn(2, 9, IMAGE, dtype=torch.float64), torch.randn(2, 5, TEXT, dtype=torch.float64)
    image, text = attention.attend(v, l, prompts=attention.prompt(attention))
    image_alone, text_alone = attention.attend(v, l)
    assert torch.equal(image, image_alone)
    assert not torch.allclose(text, text_alone)


@pytest.mark.parametrize("host_class", HOSTS)
@pytest.mark.parametrize("method", METHODS)
def test_trained_numbers_and_a_step(method: str, host_class: Any) -> None:
    model = prompted(method, random_host(host_class)).train()
    assert sdpt_ext.trainable_parameters(model)[0] == 2 * TRAINED_PER_LAYER[method]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss(model).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(ADAPTER_METHODS[method].state(model))


@pytest.mark.parametrize("host_class", HOSTS)
@pytest.mark.parametrize("method", METHODS)
def test_round_trip_and_the_host_underneath(tmp_path: Path, method: str, host_class: Any) -> None:
    model = prompted(method, random_host(host_class, torch.float32))
    sdpt_ext.save_adapter(model, tmp_path)
    loaded = sdpt_ext.load_adapter(random_host(host_class, torch.float32), tmp_path)
    assert same(outputs(loaded), outputs(model))
    zero_shot = outputs(random_host(host_class, torch.float32))
    assert not torch.equal(outputs(loaded)[0], zero_shot[0])
    with sdpt_ext.adapter_disabled(loaded):
        assert same(outputs(loaded), zero_shot)
    with pytest.raises(ValueError, match="fusion_dim: adapter 48, model 64"):
        sdpt_ext.load_adapter(random_host(host_class, encoder_ffn_dim=128), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_layers_selects_the_layers(method: str) -> None:
    model = prompted(method, random_host(HOSTS[0]))
    apply_method(model, method, PromptConfig(3, layers=(1,)))
    assert sdpt_ext.trainable_parameters(model)[0] == TRAINED_PER_LAYER[method]
    assert [layer.holder.prompt is None for layer in fusion_layers(model)] == [True, False]
    with pytest.raises(ValueError, match=r"layers \[2\] do not exist"):
        apply_method(model, method, PromptConfig(3, layers=(2,)))


@pytest.mark.parametrize("gate", [None, "zero"])
@pytest.mark.parametrize("method", METHODS)
def test_folded_equals_eager(method: str, gate: Any) -> None:
    assert_folded_equals_eager(prompted(method, random_host(HOSTS[0]), gate))


@pytest.mark.parametrize("method", METHODS)
def test_a_closed_gate_is_the_zero_shot_model(method: str) -> None:
    model = apply_method(random_host(HOSTS[0]), method, PromptConfig(3, gate="zero"))
    torch.testing.assert_close(outputs(model), outputs(random_host(HOSTS[0])), rtol=1e-9, atol=1e-9)
