"""Whole detectors and the head alone against numbers that the official GLIP code computed."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sdpt_ext.models.glip.configuration import GlipConfig
from sdpt_ext.models.glip.head import VLDyHead
from sdpt_ext.models.glip.modeling import GlipForObjectDetection, GlipOutput

from ...golden import cases
from ...golden.detections import assert_same_detections, detect
from ...golden.head import assert_gradient, assert_head, cotangent_sum
from ...golden.models import filled_model


class Case(NamedTuple):
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: GlipForObjectDetection
    output: GlipOutput

    def inputs(self) -> dict[str, Tensor]:
        shape = (1, 3, self.meta["H"], self.meta["W"])
        return {
            "pixel_values": cases.inputs(f"{self.meta['case']}.image", shape),
            "input_ids": torch.from_numpy(self.arrays["input_ids"]),
            "attention_mask": torch.from_numpy(self.arrays["attention_mask"]),
        }


def run_case(name: str, config: GlipConfig) -> Case:
    case = Case(*cases.load(name), filled_model(config), GlipOutput())
    with torch.no_grad():
        return case._replace(output=case.model(**case.inputs()))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("h_glip_t_h1", GlipConfig.tiny), id="tiny"),
        pytest.param(("h_glip_l_hl1", GlipConfig.large), id="large", marks=pytest.mark.slow),
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    name, config = request.param
    return run_case(name, config())


@torch.no_grad()
def test_swin_stages_and_pyramid(case: Case) -> None:
    pixels = case.inputs()["pixel_values"]
    swin = case.model.backbone.body(pixels, output_hidden_states=True)
    for stage, feature in enumerate((swin.hidden_states[1], *swin.feature_maps), start=2):
        cases.assert_close(feature, case.arrays, f"swin_c{stage}", 1e-5)
    for level, feature in enumerate(case.model.backbone(pixels), start=3):
        cases.assert_close(feature, case.arrays, f"fpn_p{level}", 1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_text_encoder(case: Case, implementation: str) -> None:
    inputs = case.inputs()
    case.model.text_encoder.model.set_attn_implementation(implementation)
    hidden = case.model.text_encoder(inputs["input_ids"], inputs["attention_mask"])
    cases.assert_close(hidden, case.arrays, "bert_hidden", 1e-5)


def test_head_outputs(case: Case) -> None:
    assert_head(case.output, case.output.level_sizes, case.arrays, "", 2e-3)


def test_detections(case: Case) -> None:
    assert_same_detections(detect(case.model, case.output, case.meta), case.arrays)


@pytest.fixture(scope="module")
def head() -> VLDyHead:
    head = VLDyHead(GlipConfig.tiny())
    cases.fill_parameters(head, "rpn.head.")
    return head.eval().requires_grad_(False)


@pytest.mark.parametrize(("dtype", "tolerance", "gradient"), [(torch.float32, 5e-4, 5e-2), (torch.float64, 1e-5, 1e-4)])
def test_head_alone_with_gradients(head: VLDyHead, dtype: torch.dtype, tolerance: float, gradient: float) -> None:
    meta, arrays = cases.load("e_vldyhead_e1")
    sizes = [(height, width) for height, width in meta["level_sizes"]]
    features = [
        cases.inputs(f"e1.p{level}", (1, 256, *size), dtype).requires_grad_() for level, size in enumerate(sizes)
    ]
    hidden = cases.inputs("e1.hidden", (1, 256, 768), dtype)
    output = copy.deepcopy(head).to(dtype)(features, hidden, cases.text_mask([meta["real_tokens"]], 256))

    assert_head(output, sizes, arrays, "noprompt.", tolerance)
    for level, feature in enumerate(output.features):
        cases.assert_close(feature, arrays, f"noprompt.tower_visual{level}", tolerance)
    cases.assert_close(output.hidden, arrays, "noprompt.tower_hidden", tolerance)
    cotangent_sum(output, sizes, "e1").backward()
    for level in (0, 2):
        assert_gradient(features[level].grad, arrays, f"noprompt.grad_p{level}", gradient)
