"""SDPT on transformers' Grounding DINO models: prompts in the fusion attention, the host's own code without them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoForObjectDetection,
    PreTrainedModel,
    SwinConfig,
)

import sdpt_ext
from sdpt_ext.tuners.hosts import fusion_layers
from sdpt_ext.tuners.sdpt import SDPTConfig, prompt_state

HOSTS = (GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection)
NUM_TOKENS, FUSION_DIM = 3, 48


def random_host(model_class: type[PreTrainedModel], dtype: torch.dtype = torch.float64, **sizes: Any) -> Any:
    """A tiny host whose fusion layers matter: as initialised they add next to nothing, and no two boxes differ."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=4, out_indices=[2, 3, 4]
    )
    text = BertConfig(
        vocab_size=30522, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    small = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_ffn_dim": 2 * FUSION_DIM,
        "encoder_attention_heads": 4,
        "encoder_n_points": 2,
        "decoder_layers": 2,
        "decoder_ffn_dim": 32,
        "decoder_attention_heads": 4,
        "decoder_n_points": 2,
        "num_queries": 5,
        "num_feature_levels": 3,
        "max_text_len": 16,
    }
    config = model_class.config_class(backbone_config=backbone, text_config=text, **{**small, **sizes})
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("vision_param", "text_param")):
            nn.init.ones_(parameter)
        elif not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.to(dtype).eval()


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Two images and captions; the second of each is shorter than the first and padded."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.tensor([[101, 7, 8, 1012, 9, 1012, 102], [101, 7, 1012, 102, 0, 0, 0]])
    pixel_mask = torch.ones(2, 64, 96, dtype=torch.long)
    pixel_mask[1, 40:] = pixel_mask[1, :, 72:] = 0
    return {
        "pixel_values": torch.randn(2, 3, 64, 96, generator=generator).to(dtype) * pixel_mask[:, None],
        "pixel_mask": pixel_mask,
        "input_ids": input_ids,
        "attention_mask": (input_ids > 0).long(),
    }


def outputs(model: PreTrainedModel, batch: dict[str, Tensor] | None = None) -> list[Tensor]:
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        output = model(**(inputs(dtype) if batch is None else batch))
    states = (output.encoder_last_hidden_state_vision, output.encoder_last_hidden_state_text)
    return [output.logits, output.pred_boxes, *states]


def loss(model: PreTrainedModel) -> Tensor:
    output = model(**inputs(next(model.parameters()).dtype))
    return output.logits[output.logits.isfinite()].sigmoid().sum() + output.pred_boxes.square().sum()


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right))


@pytest.fixture(scope="module", params=HOSTS, ids=lambda host: host.__name__)
def shared_host(request: pytest.FixtureRequest) -> Any:
    return random_host(request.param)


@pytest.fixture
def host(shared_host: Any) -> Any:
    return copy.deepcopy(shared_host)


def randomise_gates(model: PreTrainedModel) -> None:
    for name, value in prompt_state(model).items():
        if name.endswith("gate"):
            nn.init.normal_(value)


# ---- attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "torch"])
def test_both_forms_equal_the_host_attention(host: Any, backend: str) -> None:
    attention = fusion_layers(host)[0].attention
    v, l = torch.randn(2, 9, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    image_padding, text_padding = torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    image_padding[1, 6:] = text_padding[1, 3:] = True
    (expected_v, _), (expected_l, _) = attention(v, l, image_padding, text_padding)
    actual_v, actual_l = attention.attend(v, l, ~text_padding, None, backend, ~image_padding)
    torch.testing.assert_close(actual_v, expected_v)
    torch.testing.assert_close(actual_l, expected_l)


@pytest.mark.parametrize("gate", [None, "zero"])
@pytest.mark.parametrize("backend", ["eager", "torch"])
def test_padding_reaches_nothing(host: Any, backend: str, gate: Any) -> None:
    """A padded batch gives what every image and caption gives alone, without its padding."""
    sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS, gate=gate))
    randomise_gates(host)
    attention = fusion_layers(host)[1].attention
    attention.backend = backend
    v, l = torch.randn(2, 9, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    image_padding, text_padding = torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    image_padding[1, 6:] = text_padding[1, 3:] = True
    (padded_v, _), (padded_l, _) = attention(
        vision_features=v, text_features=l, vision_attention_mask=image_padding, text_attention_mask=text_padding
    )
    for image, (rows, tokens) in enumerate([(9, 5), (6, 3)]):
        (alone_v, _), (alone_l, _) = attention(v[image : image + 1, :rows], l[image : image + 1, :tokens])
        torch.testing.assert_close(padded_v[image : image + 1, :rows], alone_v)
        torch.testing.assert_close(padded_l[image : image + 1, :tokens], alone_l)


def test_attention_weights(host: Any) -> None:
    """The eager form returns them, the prompts' last; the folded form never has them."""
    sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS))
    assert host(**inputs(), output_attentions=True).encoder_attentions[0] == (None, None)
    for layer in fusion_layers(host):
        layer.holder.backend = "eager"
    over_text, over_image, *_ = host(**inputs(), output_attentions=True).encoder_attentions
    positions = over_text[0].shape[1]
    assert over_text[0].shape == (4, positions, 7 + NUM_TOKENS)
    assert over_image[0].shape == (4, 7, positions + NUM_TOKENS)
    torch.testing.assert_close(over_text[1].sum(-1), torch.ones(4, positions, dtype=torch.float64))


# ---- the whole detector --------------------------------------------------------------------------------------


def test_prompts_stand_in_the_state_dict_in_layer_order(host: Any) -> None:
    sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS))
    names = [f"model.encoder.layers.{layer}.fusion_layer.attn.prompt.prototype_tokens" for layer in range(2)]
    assert list(prompt_state(host)) == names
    assert all(value.shape == (NUM_TOKENS, FUSION_DIM) for value in prompt_state(host).values())
    assert sdpt_ext.trainable_parameters(host)[0] == 2 * NUM_TOKENS * FUSION_DIM


def test_host_is_untouched_without_prompts(host: Any) -> None:
    zero_shot = outputs(host)
    sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS))
    tuned = outputs(host)
    assert not any(torch.equal(a, b) for a, b in zip(tuned, zero_shot))
    with sdpt_ext.adapter_disabled(host):
        assert same(outputs(host), zero_shot)
    assert same(outputs(host), tuned)


def assert_folded_equals_eager(host: Any) -> None:
    values, gradients = {}, {}
    for backend in ("eager", "torch"):
        for layer in fusion_layers(host):
            layer.holder.backend = backend
        host.zero_grad()
        loss(host).backward()
        values[backend] = outputs(host)
        gradients[backend] = [parameter.grad for parameter in host.parameters() if parameter.requires_grad]
    torch.testing.assert_close(values["torch"], values["eager"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients["torch"], gradients["eager"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("gate", [None, "zero"])
@pytest.mark.parametrize("text_prompts", ["visible", "masked"])
def test_folded_equals_eager(host: Any, gate: Any, text_prompts: Any) -> None:
    sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS, gate=gate, text_prompts=text_prompts))
    randomise_gates(host)
    assert_folded_equals_eager(host)


def test_zero_gate_starts_from_the_zero_shot_model(host: Any) -> None:
    zero_shot = outputs(host)
    tuned = outputs(sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS, gate="zero")))
    torch.testing.assert_close(tuned, zero_shot, rtol=1e-9, atol=1e-9)


def test_images_of_a_batch_do_not_meet(host: Any) -> None:
    sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS))
    logits, boxes, _, _ = outputs(host)
    for image in range(2):
        alone = outputs(host, {name: value[image : image + 1] for name, value in inputs().items()})
        torch.testing.assert_close(logits[image : image + 1], alone[0])
        torch.testing.assert_close(boxes[image : image + 1], alone[1])


def test_a_step_changes_the_prompts_alone(host: Any) -> None:
    model = sdpt_ext.tune(host, SDPTConfig(NUM_TOKENS)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    loss(model).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(prompt_state(model))


@pytest.mark.parametrize("model_class", HOSTS)
def test_frozen_host_is_deterministic_while_training(model_class: Any) -> None:
    model = random_host(model_class, fusion_dropout=0.5, fusion_droppath=0.5, dropout=0.5)
    sdpt_ext.tune(model, SDPTConfig(NUM_TOKENS)).train()
    assert torch.equal(loss(model), loss(model))
    sdpt_ext.tune(model, SDPTConfig(NUM_TOKENS, host_dropout=True)).train()
    assert not torch.equal(loss(model), loss(model))


# ---- adapters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", HOSTS)
def test_adapter_round_trip(tmp_path: Path, model_class: Any) -> None:
    model = random_host(model_class, torch.float32)
    sdpt_ext.tune(model, SDPTConfig(NUM_TOKENS, layers=(1,), gate="zero"))
    randomise_gates(model)
    sdpt_ext.save_adapter(model, tmp_path)
    loaded = sdpt_ext.load_adapter(random_host(model_class, torch.float32), tmp_path)
    assert loaded.sdpt_config == model.sdpt_config
    assert same(outputs(loaded), outputs(model))


def test_wrong_hosts_are_named(tmp_path: Path) -> None:
    sdpt_ext.save_adapter(sdpt_ext.tune(random_host(GroundingDinoForObjectDetection)), tmp_path)
    with pytest.raises(ValueError, match="model_type: adapter 'grounding-dino', model 'mm-grounding-dino'"):
        sdpt_ext.load_adapter(random_host(MMGroundingDinoForObjectDetection), tmp_path)
    with pytest.raises(ValueError, match="num_fusion_layers: adapter 2, model 1"):
        sdpt_ext.load_adapter(random_host(GroundingDinoForObjectDetection, encoder_layers=1), tmp_path)
    with pytest.raises(ValueError, match="fusion_dim: adapter 48, model 64"):
        sdpt_ext.load_adapter(random_host(GroundingDinoForObjectDetection, encoder_ffn_dim=128), tmp_path)


def test_models_without_a_detection_head_are_refused(host: Any) -> None:
    with pytest.raises(TypeError, match=type(host.model).__name__):
        sdpt_ext.tune(host.model)
