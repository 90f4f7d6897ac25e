"""Prompts are mapped once for a model at rest, and anew after anything that they follow from has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sdpt_ext
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.tuners.sdpt import PrototypeTokens, SDPTConfig

from .test_grounding_dino import HOSTS, random_host
from .test_grounding_dino import outputs as outputs_of_grounding_dino
from .test_sdpt import batch, outputs


@contextmanager
def counted_mappings() -> Iterator[list[nn.Module]]:
    """The prompt modules that mapped their tokens meanwhile, as often as they did."""
    calls: list[nn.Module] = []
    original = PrototypeTokens._map

    def counting(prompt: PrototypeTokens, attention: object) -> object:
        calls.append(prompt)
        return original(prompt, attention)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrototypeTokens, "_map", counting)
        yield calls


@pytest.fixture(params=[None, "zero"], ids=["joint", "gated"])
def model(request: pytest.FixtureRequest) -> GlipForObjectDetection:
    torch.manual_seed(0)
    model = sdpt_ext.tune(GlipForObjectDetection(GlipConfig.nano()), SDPTConfig(num_tokens=3, gate=request.param))
    for prompt in prompts(model):
        if prompt.gate is not None:
            nn.init.normal_(prompt.gate)
    return model.eval()


def prompts(model: GlipForObjectDetection) -> list[PrototypeTokens]:
    return [block.prompt for block in model.head.fusion_blocks]


def same(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right))


def uncached(model: GlipForObjectDetection) -> tuple[Tensor, ...]:
    """The outputs of a copy, which has computed nothing yet."""
    return outputs(copy.deepcopy(model))


def test_constants_at_inference(model: GlipForObjectDetection) -> None:
    with counted_mappings() as calls:
        first = outputs(model)
        again = outputs(model)
    assert calls == prompts(model)
    assert same(first, again) and same(first, uncached(model))


@pytest.mark.parametrize("host_class", HOSTS)
def test_constants_in_grounding_dino(host_class: type) -> None:
    host = sdpt_ext.tune(random_host(host_class), SDPTConfig(num_tokens=3))
    with counted_mappings() as calls:
        assert same(outputs_of_grounding_dino(host), outputs_of_grounding_dino(host))
    assert len(calls) == 2


# ---- everything that they follow from ------------------------------------------------------------------------


def step_of_the_prompts(model: GlipForObjectDetection) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**batch()).loss.backward()
    optimizer.step()


def load_state_dict(model: GlipForObjectDetection) -> None:
    model.load_state_dict({name: 1.5 * value for name, value in model.state_dict().items() if "prompt" in name}, False)


def assign_state_dict(model: GlipForObjectDetection) -> None:
    state = {name: 1.5 * value for name, value in model.state_dict().items() if "prompt" in name}
    model.load_state_dict(state, strict=False, assign=True)


def load_adapter(model: GlipForObjectDetection, folder: Path) -> None:
    other = copy.deepcopy(model)
    load_state_dict(other)
    sdpt_ext.save_adapter(other, folder)
    sdpt_ext.load_adapter(model, folder)


def tune_again(model: GlipForObjectDetection) -> None:
    sdpt_ext.tune(model, SDPTConfig(num_tokens=5, text_prompts="masked"))


def average_behind_autograd(model: GlipForObjectDetection) -> None:
    for prompt in prompts(model):
        prompt.prototype_tokens.data.mul_(0.5)


def change_of(layer: str) -> Callable[[GlipForObjectDetection], None]:
    def change(model: GlipForObjectDetection) -> None:
        with torch.no_grad():
            for parameter in model.head.fusion_blocks[1].attn.get_submodule(layer).parameters():
                parameter.add_(0.1)

    change.__name__ = layer
    return change


CHANGES: list[Callable[..., None]] = [
    step_of_the_prompts,
    load_state_dict,
    assign_state_dict,
    load_adapter,
    tune_again,
    average_behind_autograd,
    *(change_of(layer) for layer in ("v_proj", "l_proj", "values_v_proj", "values_l_proj", "out_v_proj", "out_l_proj")),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_change_is_missed(model: GlipForObjectDetection, change: Callable[..., None], tmp_path: Path) -> None:
    before = outputs(model)
    change(*((model, tmp_path) if change is load_adapter else (model,)))
    after = outputs(model)
    assert not same(before, after)
    assert same(after, uncached(model))


def test_gate(model: GlipForObjectDetection) -> None:
    if prompts(model)[0].gate is None:
        pytest.skip("joint prompts have no gate")
    before = outputs(model)
    with torch.no_grad():
        prompts(model)[0].gate.add_(1.0)
    assert not same(outputs(model), before) and same(outputs(model), uncached(model))


def test_precision(model: GlipForObjectDetection) -> None:
    single = outputs(model)
    model.double()
    with torch.no_grad():
        inputs = {**batch(), "labels": None}
        double = model(**{**inputs, "pixel_values": inputs["pixel_values"].double()}).logits
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single[0], rtol=1e-3, atol=1e-3)
    assert same(outputs(model.float()), single)


def test_autocast(model: GlipForObjectDetection) -> None:
    single = outputs(model)
    with torch.autocast("cpu", torch.bfloat16):
        low = outputs(model)
        assert same(low, uncached(model))
    assert not same(low, single) and same(outputs(model), single)


def test_adapter_disabled(model: GlipForObjectDetection) -> None:
    tuned = outputs(model)
    with sdpt_ext.adapter_disabled(model), counted_mappings() as calls:
        assert not same(outputs(model), tuned)
    assert not calls
    assert same(outputs(model), tuned)


def test_training_and_back(model: GlipForObjectDetection) -> None:
    before = outputs(model)
    model.train()
    step_of_the_prompts(model)
    with counted_mappings() as calls:
        after = outputs(model.eval())
        model(**batch()).loss.backward()
    assert calls == prompts(model) * 2, "gradients need the mapping itself"
    assert not same(after, before) and same(after, uncached(model))


def test_a_frozen_text_encoder_reads_a_caption_once_for_many_steps(
    model: GlipForObjectDetection, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, encode = [], model.text_encoder._encode
    monkeypatch.setattr(model.text_encoder, "_encode", lambda *inputs: calls.append(inputs) or encode(*inputs))
    for _ in range(3):
        step_of_the_prompts(model.train())
    assert len(calls) == 1


def test_gradients_in_evaluation_mode(model: GlipForObjectDetection) -> None:
    fresh = copy.deepcopy(model)
    outputs(model)
    for detector in (model, fresh):
        detector(**batch()).loss.backward()
    for ours, expected in zip(prompts(model), prompts(fresh)):
        assert torch.equal(ours.prototype_tokens.grad, expected.prototype_tokens.grad)


def test_evaluation_in_inference_mode_first(model: GlipForObjectDetection) -> None:
    with torch.inference_mode():
        model(**{**batch(), "labels": None})
    for prompt in prompts(model):
        prompt.requires_grad_(False)
    pixels = batch()["pixel_values"].requires_grad_()
    model(**{**batch(), "pixel_values": pixels}).loss.backward()
    assert pixels.grad.isfinite().all() and pixels.grad.any()
