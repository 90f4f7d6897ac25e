"""Adapters: round trip, size, the zero-shot model underneath, and hosts they do not belong to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sdpt_ext
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.tuners.adapter import CONFIG_NAME, WEIGHTS_NAME
from sdpt_ext.tuners.sdpt import SDPTConfig, prompt_state

from .test_sdpt import outputs


def nano(seed: int = 0) -> GlipForObjectDetection:
    torch.manual_seed(seed)
    return GlipForObjectDetection(GlipConfig.nano()).eval()


@pytest.mark.parametrize(
    "config", [SDPTConfig(num_tokens=3), SDPTConfig(2, layers=(1,), text_prompts="masked", gate="zero")]
)
def test_round_trip(tmp_path: Path, config: SDPTConfig) -> None:
    model = sdpt_ext.tune(nano(), config)
    sdpt_ext.save_adapter(model, tmp_path)
    loaded = sdpt_ext.load_adapter(nano(), tmp_path)
    assert loaded.sdpt_config == config
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(loaded)))
    assert sdpt_ext.trainable_parameters(loaded) == sdpt_ext.trainable_parameters(model)


@pytest.mark.parametrize("config", [GlipConfig.tiny(), GlipConfig.large()])
def test_adapter_is_under_a_megabyte(config: GlipConfig) -> None:
    with torch.device("meta"):
        model = sdpt_ext.tune(GlipForObjectDetection(config), SDPTConfig(num_tokens=10))
    size = sum(value.numel() * value.element_size() for value in prompt_state(model).values())
    assert size < 1_000_000 - 10_000  # the rest is the header of the file


def test_disabled_adapter_is_the_zero_shot_model(tmp_path: Path) -> None:
    model = nano()
    zero_shot = outputs(model)
    sdpt_ext.tune(model)
    assert not torch.equal(outputs(model)[0], zero_shot[0])
    with sdpt_ext.adapter_disabled(model):
        assert all(torch.equal(a, b) for a, b in zip(outputs(model), zero_shot))
    assert not torch.equal(outputs(model)[0], zero_shot[0])


def test_untuned_model_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter to save"):
        sdpt_ext.save_adapter(nano(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_host_of_another_size_is_named(tmp_path: Path) -> None:
    sdpt_ext.save_adapter(sdpt_ext.tune(nano()), tmp_path)
    other = GlipForObjectDetection(GlipConfig.nano(num_head_layers=2))
    with pytest.raises(ValueError, match="num_fusion_layers: adapter 3, model 2"):
        sdpt_ext.load_adapter(other, tmp_path)


def test_host_with_other_weights_is_named(tmp_path: Path) -> None:
    sdpt_ext.save_adapter(sdpt_ext.tune(nano()), tmp_path)
    other = nano()
    with torch.no_grad():
        other.head.fusion_blocks[1].attn.v_proj.weight.mul_(1.1)
    with pytest.raises(ValueError, match="weights of fusion layer 1"):
        sdpt_ext.load_adapter(other, tmp_path)


def test_host_in_half_precision_is_the_same_host(tmp_path: Path) -> None:
    sdpt_ext.save_adapter(sdpt_ext.tune(nano()), tmp_path)
    loaded = sdpt_ext.load_adapter(nano().to(torch.bfloat16), tmp_path)
    assert all(value.dtype == torch.bfloat16 for value in prompt_state(loaded).values())


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        sdpt_ext.load_adapter(nano(), tmp_path)
    sdpt_ext.save_adapter(sdpt_ext.tune(nano()), tmp_path)
    weights = tmp_path / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=WEIGHTS_NAME):
        sdpt_ext.load_adapter(nano(), tmp_path)
    (tmp_path / CONFIG_NAME).write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        sdpt_ext.load_adapter(nano(), tmp_path)


def test_tensors_that_do_not_fit_the_description_are_named(tmp_path: Path) -> None:
    sdpt_ext.save_adapter(sdpt_ext.tune(nano(), SDPTConfig(num_tokens=4)), tmp_path)
    path = tmp_path / CONFIG_NAME
    description = json.loads(path.read_text())
    description["sdpt"]["num_tokens"] = 5
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"prototype_tokens: shape \(4, 256\), expected \(5, 256\)"):
        sdpt_ext.load_adapter(nano(), tmp_path)
