"""LoRA: what trains, that it starts from the zero-shot model, and its way through files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sdpt_ext
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.tuners import LoRAConfig, apply_method
from sdpt_ext.tuners.lora import lora_state

from .test_adapter import nano
from .test_sdpt import batch, outputs


def with_updates(config: LoRAConfig) -> GlipForObjectDetection:
    model = apply_method(nano(), "lora", config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


def test_low_rank_updates_of_queries_and_values_train() -> None:
    model = apply_method(nano(), "lora", LoRAConfig(rank=3))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == list(lora_state(model))
    hosts = {name.split(".lora_")[0] for name in trained}
    swin = sum(GlipConfig.nano().backbone_config.depths)
    layers = {part: sum(name.startswith(part) for name in hosts) for part in ("backbone", "text_encoder", "head")}
    assert layers == {"backbone": 2 * swin, "text_encoder": 4, "head": 6}
    assert not any(".b_attn." in name for name in hosts)
    assert all(3 in parameter.shape for parameter in lora_state(model).values())


def test_updates_start_at_zero_and_get_gradients() -> None:
    model = nano()
    zero_shot = outputs(model)
    apply_method(model, "lora")
    torch.testing.assert_close(outputs(model), zero_shot, rtol=1e-5, atol=1e-5)
    model.train()(**batch()).logits.float().square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == lora_state(model).keys()
    assert all(value.any() for name, value in gradients.items() if ".lora_B." in name)


def test_disabled_updates_leave_the_zero_shot_model() -> None:
    zero_shot = outputs(nano())
    model = with_updates(LoRAConfig(rank=2))
    tuned = outputs(model)
    assert not torch.equal(tuned[0], zero_shot[0])
    with sdpt_ext.adapter_disabled(model):
        assert all(torch.equal(a, b) for a, b in zip(outputs(model), zero_shot))
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), tuned))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == lora_state(model).keys()


def test_round_trip(tmp_path: Path) -> None:
    model = with_updates(LoRAConfig(rank=2, alpha=3))
    sdpt_ext.save_adapter(model, tmp_path)
    description = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (description["method"], description["lora"]["alpha"]) == ("lora", 3)
    loaded = sdpt_ext.load_adapter(nano(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(loaded)))


def test_two_methods_at_once_make_no_adapter(tmp_path: Path) -> None:
    model = sdpt_ext.tune(with_updates(LoRAConfig()))
    with pytest.raises(ValueError, match="tuned by sdpt and lora"):
        sdpt_ext.save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LoRAConfig(rank=0)
