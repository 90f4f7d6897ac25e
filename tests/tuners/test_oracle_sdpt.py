"""GLIP-T with SDPT prompts against numbers that the official SDPT code computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sdpt_ext
from sdpt_ext.models.glip.configuration import GlipConfig
from sdpt_ext.models.glip.modeling import GlipForObjectDetection

from ..golden import cases, fill
from ..golden.detections import assert_same_detections, detect, label_to_tokens
from ..golden.head import assert_gradient, assert_head, cotangent_sum
from ..golden.models import filled_model

VARIANTS = [("official_mask0", "masked"), ("visible_mask1", "visible")]
NUM_TOKENS = 10


@pytest.fixture(scope="module")
def host() -> GlipForObjectDetection:
    return filled_model(GlipConfig.tiny())


@pytest.fixture(scope="module")
def precise_host(host: GlipForObjectDetection) -> GlipForObjectDetection:
    return copy.deepcopy(host).double()


def add_prompts(host: GlipForObjectDetection, text_prompts: str) -> list[nn.Parameter]:
    """Tune the host with the prompts that their official names stand for; -> the prompts, first layer first."""
    config = sdpt_ext.SDPTConfig(num_tokens=NUM_TOKENS, text_prompts=text_prompts)
    prompts = [value for name, value in sdpt_ext.tune(host, config).named_parameters() if "prototype_tokens" in name]
    with torch.no_grad():
        for layer, prompt in enumerate(prompts):
            values = fill.fill(f"rpn.head.{official_name(layer)}", (1, *prompt.shape))
            prompt.copy_(torch.from_numpy(values[0]))
    return prompts


def official_name(layer: int) -> str:
    return f"dyhead_tower.{3 * layer}.b_attn.attn.cpt_input"


@pytest.mark.parametrize(("variant", "text_prompts"), VARIANTS)
def test_head_outputs_and_gradients(host: GlipForObjectDetection, variant: str, text_prompts: str) -> None:
    meta, arrays = cases.load("e_vldyhead_e1")
    prompts = add_prompts(host, text_prompts)
    sizes = tuple((height, width) for height, width in meta["level_sizes"])
    features = [cases.inputs(f"e1.p{level}", (1, 256, *size)).requires_grad_() for level, size in enumerate(sizes)]
    hidden = cases.inputs("e1.hidden", (1, 256, 768))
    output = host.head(features, hidden, cases.text_mask([meta["real_tokens"]], 256))
    assert_head(output, sizes, arrays, f"{variant}.", 5e-4)

    cotangent_sum(output, sizes, "e1").backward()
    for level in (0, 2):
        assert_gradient(features[level].grad, arrays, f"{variant}.grad_p{level}", 5e-2)
    for layer, prompt in enumerate(prompts):
        assert_gradient(prompt.grad[None], arrays, f"{variant}.grad.{official_name(layer)}", 5e-2)


@pytest.mark.parametrize(("variant", "text_prompts"), VARIANTS)
def test_detector_and_training_step(precise_host: GlipForObjectDetection, variant: str, text_prompts: str) -> None:
    meta, arrays = cases.load("h_sdpt_t_hs1")
    prompts = add_prompts(precise_host, text_prompts)
    inputs = {
        "pixel_values": cases.inputs("hs1.image", (1, 3, meta["H"], meta["W"]), torch.float64),
        "input_ids": torch.from_numpy(arrays["input_ids"]),
        "attention_mask": torch.from_numpy(arrays["attention_mask"]),
    }
    labels = [training_labels(label_to_tokens(meta))]

    output = precise_host.train()(**inputs, labels=labels)
    output.loss.backward()
    precise_host.eval()
    assert_head(output, output.level_sizes, arrays, f"{variant}.", 1e-5)
    assert_same_detections(detect(precise_host, output, meta), arrays, f"{variant}.")
    for name, loss in output.loss_dict.items():
        assert loss.item() == pytest.approx(float(arrays[f"{variant}.train.{name}"][0]), rel=1e-6)
    for layer, prompt in enumerate(prompts):
        name = f"{variant}.train.grad.rpn.head.{official_name(layer)}"
        assert_gradient(prompt.grad[None], arrays, name, 1e-4)


def training_labels(tokens: dict[int, list[int]]) -> dict[str, Tensor]:
    """The three boxes of the golden training step."""
    classes = torch.tensor([1, 3, 2])
    positive_map = torch.zeros(3, 256)
    for row, label in enumerate(classes.tolist()):
        positive_map[row, tokens[label]] = 1
    boxes = torch.tensor([[20.0, 30.0, 120.0, 150.0], [100.5, 10.25, 250.0, 100.75], [5.0, 100.0, 60.0, 150.0]])
    return {"boxes": boxes, "class_labels": classes, "positive_map": positive_map}
