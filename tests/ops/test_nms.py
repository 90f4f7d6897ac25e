"""Class-wise suppression against the definition and in its corner cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdpt_ext.ops import nms

from .backends import BACKENDS, DEVICE, needs_library


def random_boxes(count: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    corners = 40 * torch.rand(count, 2, generator=generator, dtype=torch.float64, device="cpu")
    sizes = 30 * torch.rand(count, 2, generator=generator, dtype=torch.float64, device="cpu")
    scores = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    labels = torch.randint(classes, (count,), generator=generator, device="cpu")
    return torch.cat([corners, corners + sizes], 1).to(DEVICE, dtype), scores.to(DEVICE, dtype), labels.to(DEVICE)


def by_loops(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -float(scores[i])):
        rivals = (other for other in kept if labels[other] == labels[index])
        if all(iou(boxes[other].tolist(), boxes[index].tolist()) <= threshold for other in rivals):
            kept.append(index)
    return kept


def iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (areas - width * height)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("count", "classes"), [(0, 1), (1, 1), (60, 1), (200, 5), (150, 150)])
def test_equals_the_definition(count: int, classes: int, backend: str) -> None:
    boxes, scores, labels = random_boxes(count, classes, torch.float64)
    kept = nms(boxes, scores, labels, 0.4, backend=backend)
    assert kept.dtype == torch.int64
    assert kept.tolist() == by_loops(boxes, scores, labels, 0.4)


@needs_library
def test_backends_agree_in_float32() -> None:
    boxes, scores, labels = random_boxes(1000, 3)
    assert torch.equal(nms(boxes, scores, labels, 0.5, "ext"), nms(boxes, scores, labels, 0.5, "torch"))


# More boxes than the CUDA kernel compares at a time.
@needs_library
def test_backends_agree_on_many_boxes() -> None:
    boxes, scores, labels = random_boxes(2100, 40)
    assert torch.equal(nms(boxes, scores, labels, 0.5, "ext"), nms(boxes, scores, labels, 0.5, "torch"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_corners_are_inclusive(backend: str) -> None:
    # 10 and 8 rows of 10 pixels: IoU 0.8 with inclusive corners, 7/9 without.
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 7]])
    arguments = (boxes, torch.tensor([0.9, 0.8]), torch.ones(2, dtype=torch.int64))
    assert nms(*arguments, 0.79, backend=backend).tolist() == [0]
    assert nms(*arguments, 0.81, backend=backend).tolist() == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_classes_and_equal_iou_do_not_suppress(backend: str) -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 4]])
    labels = torch.tensor([1, 2, 1])
    assert nms(boxes, torch.tensor([0.5, 0.6, 0.4]), labels, 0.5, backend=backend).tolist() == [1, 0, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_keep_the_order_of_the_input(backend: str) -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [50, 50, 59, 59], [0, 0, 9, 9]])
    assert nms(boxes, torch.ones(3), torch.ones(3).long(), 0.5, backend=backend).tolist() == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_and_half_precision(backend: str) -> None:
    boxes, scores, labels = random_boxes(50, 2)
    expected = nms(boxes, scores, labels, 0.5, backend=backend)
    strided = (boxes.t().contiguous().t(), torch.stack([scores, scores], 1)[:, 0], torch.stack([labels] * 2, 1)[:, 0])
    assert torch.equal(nms(*strided, 0.5, backend=backend), expected)
    halves = (boxes.half(), scores.half(), labels)
    singles = (boxes.half().float(), scores.half().float(), labels)
    assert torch.equal(nms(*halves, 0.5, backend=backend), nms(*singles, 0.5, backend=backend))


@needs_library
def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.sdpt_ext.nms.default, (*random_boxes(20, 2), 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, r"boxes must have shape \(N, 4\)"),
        ({"scores": torch.zeros(2)}, r"scores must have shape \(3,\)"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels must have shape \(3,\)"),
        ({"labels": torch.zeros(3)}, "labels must be int64"),
        ({"iou_threshold": 1.5}, r"iou_threshold=1.5 must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_raise(changes: dict[str, Any], message: str) -> None:
    boxes, scores, labels = random_boxes(3, 1)
    arguments = {"boxes": boxes, "scores": scores, "labels": labels, "iou_threshold": 0.5, **changes}
    with pytest.raises(ValueError, match=message):
        nms(**arguments)
