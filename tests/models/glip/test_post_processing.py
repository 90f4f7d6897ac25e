from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdpt_ext.models.glip.anchors import level_anchors
from sdpt_ext.models.glip.post_processing import post_process_detections

from ...golden import cases
from . import detection_cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["g1", "g80", "g_few"])
def test_golden(name: str, dtype: torch.dtype) -> None:
    meta, arrays = cases.load(f"g_postprocess_{name}")
    levels = detection_cases.head_levels(meta, dtype, meta["dot_scale"], meta["dot_shift"])
    label_to_tokens = {int(label): tokens for label, tokens in meta["label_to_tokens"].items()}
    detections = post_process_detections(
        *detection_cases.concatenated(levels),
        detection_cases.anchors(meta, dtype),
        [label_to_tokens] * len(meta["image_hw"]),
        meta["image_hw"],
    )
    for image, found in enumerate(detections):
        expected = {key: torch.from_numpy(arrays[f"{key}_img{image}"]) for key in ("scores", "labels", "boxes")}
        assert len(found["scores"]) == len(expected["scores"])
        # The last of 100 may differ by rounding.
        certain = min(len(expected["scores"]), 99)
        assert torch.equal(found["labels"][:certain], expected["labels"][:certain])
        assert (found["scores"] - expected["scores"]).abs().max() <= 1e-5
        assert (found["boxes"][:certain] - expected["boxes"][:certain]).abs().max() <= 1e-2


def one_level(logits: Tensor, centerness: float = 20.0) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Raw outputs (1, N, ...) with boxes equal to their anchors of 8 pixels, 8 pixels apart: no overlaps."""
    count = logits.shape[1]
    return (
        logits,
        torch.zeros(1, count, 4),
        torch.full((1, count, 1), centerness),
        level_anchors([(1, count)], [8], [8]),
    )


def test_a_class_scores_the_mean_of_its_tokens() -> None:
    logits = torch.tensor([[[0.0, 2.0, -1.0, 4.0]]])
    (found,) = post_process_detections(*one_level(logits), [{3: [1], 7: [0, 2]}], [(8, 8)])
    p = logits[0, 0].sigmoid()
    assert found["labels"].tolist() == [3, 7]
    torch.testing.assert_close(found["scores"], torch.stack((p[1], (p[0] + p[2]) / 2)).sqrt())
    assert found["boxes"].tolist() == [[0, 0, 7, 7]] * 2


def test_threshold_comes_before_centerness() -> None:
    logits = torch.tensor([[[0.06], [0.04]]]).logit()
    (found,) = post_process_detections(*one_level(logits, centerness=-6.0), [{1: [0]}], [(8, 16)])
    assert len(found["scores"]) == 1
    assert found["scores"].item() < 0.05


def test_ties_with_the_last_are_kept() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0, 0.0])[None, :, None]
    (found,) = post_process_detections(*one_level(logits), [{1: [0]}], [(8, 48)], max_detections=3)
    assert found["boxes"][:, 0].tolist()[:2] == [0, 16]
    assert sorted(found["boxes"][:, 0].tolist()) == [0, 8, 16, 24, 32]


def test_each_level_passes_on_its_best() -> None:
    logits = torch.arange(6.0)[None, :, None]
    (found,) = post_process_detections(*one_level(logits), [{1: [0]}], [(8, 48)], pre_nms_top_n=2)
    assert found["boxes"][:, 0].tolist() == [40, 32]


def test_boxes_end_at_the_last_pixel() -> None:
    logits, deltas, centerness, anchors = one_level(torch.full((1, 1, 1), 3.0))
    deltas[..., 2:] = 20
    (found,) = post_process_detections(logits, deltas, centerness, anchors, [{1: [0]}], torch.tensor([[30, 20]]))
    assert found["boxes"].tolist() == [[0, 0, 19, 29]]


@pytest.mark.parametrize("label_to_tokens", [{}, {1: []}, {1: [0]}])
def test_nothing_found(label_to_tokens: dict[int, list[int]]) -> None:
    logits = torch.full((1, 4, 2), -9.0)
    (found,) = post_process_detections(*one_level(logits), [label_to_tokens], [(8, 32)])
    assert found["scores"].shape == (0,) and found["boxes"].shape == (0, 4)
    assert found["labels"].shape == (0,) and found["labels"].dtype == torch.int64


def test_bad_arguments() -> None:
    outputs = one_level(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match=r"label 5 stands at token positions \[1, 2\], but the caption has only 2"):
        post_process_detections(*outputs, [{5: [1, 2]}], [(8, 32)])
    with pytest.raises(ValueError, match="batch of 1, got 2 and 1"):
        post_process_detections(*outputs, [{}, {}], [(8, 32)])


def test_autocast_changes_nothing() -> None:
    logits = torch.linspace(-3, 3, 12).reshape(1, 4, 3)
    arguments = (*one_level(logits), [{1: [0, 1], 2: [2]}], [(8, 32)])
    (expected,) = post_process_detections(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = post_process_detections(*arguments)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
