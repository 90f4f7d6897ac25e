"""SDPT's prompts against the official numbers, and what tuning may and may not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sdpt_ext
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.nn import BiAttentionBlock
from sdpt_ext.tuners.sdpt import PrototypeTokens, SDPTConfig, prompt_state

from ..golden import cases, fill

VARIANTS = {"official_mask0": "masked", "visible_mask1": "visible"}


def prompted_block(count: int, variant: str, backend: str, dtype: torch.dtype) -> BiAttentionBlock:
    block = BiAttentionBlock(256, 768, 2048, 8)
    cases.fill_parameters(block, "sdpt.")
    block.prompt = PrototypeTokens(block.attn, SDPTConfig(count, text_prompts=VARIANTS[variant]))
    with torch.no_grad():
        tokens = cases.tensor(fill.fill("sdpt.attn.cpt_input", (1, count, 2048)))[0]
        block.prompt.prototype_tokens.copy_(tokens)
    block.backend = backend
    return block.to(dtype).eval()


def weighted_sum(outputs: tuple[Tensor, Tensor], name: str) -> Tensor:
    return sum((out * cases.cotangent(f"{name}.{side}", out)).sum() for out, side in zip(outputs, "vl"))


@pytest.mark.parametrize("backend", ["eager", "torch"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 10, 120])
def test_golden(count: int, dtype: torch.dtype, variant: str, backend: str) -> None:
    name = f"b{count}"
    meta, arrays = cases.load(f"b_sdpt_{name}")
    block = prompted_block(count, variant, backend, dtype)
    mask = cases.text_mask(meta["real_tokens"], meta["L"])
    parts = {
        "attn": (name, lambda v, l: block.attn.attend(v, l, mask, block.prompt(block.attn), backend)),
        "block": (f"{name}blk", lambda v, l: block(v, l, mask)),
    }
    for part, (inputs, forward) in parts.items():
        block.zero_grad()
        v = cases.inputs(f"{inputs}.v", (1, meta["N"], 256), dtype).requires_grad_()
        l = cases.inputs(f"{inputs}.l", (1, meta["L"], 768), dtype).requires_grad_()
        outputs = forward(v, l)
        weighted_sum(outputs, inputs).backward()
        outputs_tolerance, gradient_tolerance = (2e-5, 5e-5) if dtype == torch.float32 else (1e-6, 1e-6)
        for key, value in zip(("out_v", "out_l"), outputs):
            cases.assert_close(value, arrays, f"{part}.{variant}.{key}", outputs_tolerance)
        prompt_grad = block.prompt.prototype_tokens.grad[None]
        for key, value in (("grad_v", v.grad), ("grad_l", l.grad), ("grad_cpt_input", prompt_grad)):
            cases.assert_close(value, arrays, f"{part}.{variant}.{key}", gradient_tolerance)


# ---- tuning a whole detector ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> GlipForObjectDetection:
    torch.manual_seed(0)
    return GlipForObjectDetection(GlipConfig.nano()).eval()


def batch() -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    positive_map = torch.zeros(1, 6)
    positive_map[0, 1:3] = 1
    return {
        "pixel_values": torch.randn(2, 3, 64, 96, generator=generator),
        "input_ids": torch.randint(5, 2000, (2, 6), generator=generator),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]),
        "labels": [
            {
                "boxes": torch.tensor([[10.0, 8.0, 50.0, 40.0]]),
                "class_labels": torch.ones(1),
                "positive_map": positive_map,
            },
            {"boxes": torch.zeros(0, 4), "class_labels": torch.ones(0), "positive_map": torch.zeros(0, 6)},
        ],
    }


def outputs(model: GlipForObjectDetection) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        output = model(**{**batch(), "labels": None})
    return output.logits, output.box_deltas, output.centerness


@pytest.mark.parametrize(("config", "expected"), [(GlipConfig.tiny(), 122_880), (GlipConfig.large(), 163_840)])
def test_trainable_parameters(config: GlipConfig, expected: int) -> None:
    with torch.device("meta"):
        model = sdpt_ext.tune(GlipForObjectDetection(config), SDPTConfig(num_tokens=10))
    trainable, total = sdpt_ext.trainable_parameters(model)
    assert trainable == expected
    assert trainable / total < 0.0006


@pytest.mark.parametrize("gate", [None, "zero"])
def test_a_step_changes_the_prompts_alone(nano: GlipForObjectDetection, gate: str | None) -> None:
    model = sdpt_ext.tune(nano, SDPTConfig(num_tokens=3, gate=gate)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # behind a closed gate the tokens get their first gradient in the second step
        optimizer.zero_grad()
        model(**batch()).loss.backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(prompt_state(model))


def test_frozen_host_is_deterministic_while_training() -> None:
    config = GlipConfig.nano(fusion_dropout=0.5, drop_block=0.5)
    model = sdpt_ext.tune(GlipForObjectDetection(config)).train()
    losses = [model(**batch()).loss.item() for _ in range(2)]
    assert losses[0] == losses[1]
    sdpt_ext.tune(model, SDPTConfig(host_dropout=True)).train()
    losses = [model(**batch()).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]


def test_zero_gate_starts_from_the_zero_shot_model(nano: GlipForObjectDetection) -> None:
    model = sdpt_ext.tune(nano, SDPTConfig(gate="zero"))
    tuned = outputs(model)
    with sdpt_ext.adapter_disabled(model):
        zero_shot = outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(tuned, zero_shot))


@pytest.mark.parametrize("gate", [None, "zero"])
@pytest.mark.parametrize("text_prompts", ["visible", "masked"])
def test_folded_equals_eager(nano: GlipForObjectDetection, gate: str | None, text_prompts: str) -> None:
    model = sdpt_ext.tune(nano, SDPTConfig(num_tokens=4, gate=gate, text_prompts=text_prompts))
    if gate:
        for block in model.head.fusion_blocks:
            nn.init.normal_(block.prompt.gate)
    results = {}
    for backend in ("eager", "torch"):
        model.set_fusion_backend(backend)
        results[backend] = outputs(model)
    model.set_fusion_backend("auto")
    visible = torch.tensor([True] * 4)  # tokens that are real in both captions
    for eager, folded in zip(results["eager"], results["torch"]):
        torch.testing.assert_close(folded[:, :, : len(visible)], eager[:, :, : len(visible)], rtol=1e-3, atol=1e-4)


def test_layers_choose_where_prompts_go(nano: GlipForObjectDetection) -> None:
    model = sdpt_ext.tune(nano, SDPTConfig(num_tokens=2, layers=(0, 2)))
    assert [block.prompt is not None for block in model.head.fusion_blocks] == [True, False, True]
    assert sdpt_ext.trainable_parameters(model)[0] == 2 * 2 * model.config.fusion_dim
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist.*0\.\.2"):
        sdpt_ext.tune(nano, SDPTConfig(layers=(3,)))


@pytest.mark.parametrize("bad", [{"num_tokens": 0}, {"text_prompts": "hidden"}, {"init": "ones"}, {"gate": "open"}])
def test_bad_options_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SDPTConfig(**bad)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        sdpt_ext.tune(nn.Linear(2, 2))
