"""Whole detectors and the head alone against numbers that the official GLIP code computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sdpt_ext.models.glip.configuration import GlipConfig
from sdpt_ext.models.glip.head import HeadOutput, VLDyHead
from sdpt_ext.models.glip.modeling import GlipForObjectDetection, GlipOutput
from sdpt_ext.models.glip.post_processing import post_process_detections

from ...golden import cases
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


def by_level(
    output: GlipOutput | HeadOutput, sizes: tuple[tuple[int, int], ...]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """-> level, box maps (B, 4, h, w), centre-ness maps (B, 1, h, w), token logits (B, h*w, T)."""
    counts = [height * width for height, width in sizes]
    parts = (output.box_deltas.split(counts, 1), output.centerness.split(counts, 1), output.logits.split(counts, 1))
    for level, (size, boxes, centerness, logits) in enumerate(zip(sizes, *parts)):
        yield level, boxes.mT.unflatten(2, size), centerness.mT.unflatten(2, size), logits


def assert_head(
    output: GlipOutput | HeadOutput,
    sizes: tuple[tuple[int, int], ...],
    arrays: dict[str, np.ndarray],
    prefix: str,
    tolerance: float,
) -> None:
    for level, boxes, centerness, logits in by_level(output, sizes):
        cases.assert_close(boxes, arrays, f"{prefix}bbox{level}", tolerance)
        cases.assert_close(centerness, arrays, f"{prefix}ctr{level}", tolerance)
        cases.assert_close(logits, arrays, f"{prefix}dot{level}", tolerance)


def test_head_outputs(case: Case) -> None:
    assert_head(case.output, case.output.level_sizes, case.arrays, "", 2e-3)


def test_detections(case: Case) -> None:
    label_to_tokens = {int(label): positions for label, positions in case.meta["label_to_tokens"].items()}
    (detections,) = post_process_detections(
        case.output.logits,
        case.output.box_deltas,
        case.output.centerness,
        case.model.anchors(case.output.level_sizes),
        [label_to_tokens],
        [(case.meta["H"], case.meta["W"])],
    )
    assert len(detections["scores"]) == 100
    # The last ten compete with candidates of almost the same score.
    for name, tolerance in (("scores", 1e-4), ("labels", 0), ("boxes", 0.05)):
        expected = torch.from_numpy(case.arrays[f"det_{name}"][:90])
        torch.testing.assert_close(detections[name][:90], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance", "gradient"), [(torch.float32, 5e-4, 5e-2), (torch.float64, 1e-5, 1e-4)])
def test_head_alone_with_gradients(dtype: torch.dtype, tolerance: float, gradient: float) -> None:
    meta, arrays = cases.load("e_vldyhead_e1")
    sizes = tuple((height, width) for height, width in meta["level_sizes"])
    head = VLDyHead(GlipConfig.tiny())
    cases.fill_parameters(head, "rpn.head.")
    head.to(dtype).eval().requires_grad_(False)
    features = [
        cases.inputs(f"e1.p{level}", (1, 256, *size), dtype).requires_grad_() for level, size in enumerate(sizes)
    ]
    hidden = cases.inputs("e1.hidden", (1, 256, 768), dtype)
    output = head(features, hidden, cases.text_mask([meta["real_tokens"]], 256))

    assert_head(output, sizes, arrays, "noprompt.", tolerance)
    for level, feature in enumerate(output.features):
        cases.assert_close(feature, arrays, f"noprompt.tower_visual{level}", tolerance)
    cases.assert_close(output.hidden, arrays, "noprompt.tower_hidden", tolerance)
    weighted = [
        (value * cases.cotangent(f"e1.{name}{level}", value)).sum()
        for level, *values in by_level(output, sizes)
        for name, value in zip(("bbox", "ctr", "dot"), values)
    ]
    torch.stack(weighted).sum().backward()
    for level in (0, 2):
        error = cases.relative_l2(features[level].grad, arrays, f"noprompt.grad_p{level}")
        assert error <= gradient, f"gradient of p{level}: relative L2 {error:.2e}"
