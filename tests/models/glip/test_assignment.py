from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdpt_ext.models.glip.anchors import level_anchors
from sdpt_ext.models.glip.assignment import assign_atss

from ...golden import cases
from . import detection_cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["f1", "f2"])
def test_golden(name: str, dtype: torch.dtype) -> None:
    meta, arrays = cases.load(f"f_atss_{name}")
    anchors = detection_cases.anchors(meta, dtype)
    for image, boxes in enumerate(meta["boxes_xyxy"]):
        matched = assign_atss(anchors, torch.tensor(boxes, dtype=dtype))
        labels = torch.tensor([*meta["labels"][image], 0])[matched]
        assert torch.equal(labels, torch.from_numpy(arrays[f"assign.labels_img{image}"]).long())
        assert torch.equal((matched >= 0).nonzero()[:, 0], torch.from_numpy(arrays[f"assign.pos_idx_img{image}"]))


def loop_assignment(levels: list[Tensor], boxes: Tensor, top_k: int) -> Tensor:
    """The rule of the paper, one anchor and one object at a time."""
    anchors = torch.cat(levels).double()
    claims: dict[int, tuple[float, int]] = {}
    for g, box in enumerate(boxes.double()):
        candidates, start = [], 0
        for level in levels:
            distance = ((level[:, :2] + level[:, 2:]) / 2 - (box[:2] + box[2:]) / 2).norm(dim=1)
            candidates += [start + int(i) for i in distance.argsort()[:top_k]]
            start += len(level)
        overlaps = torch.tensor([float(iou(anchors[c], box)) for c in candidates])
        threshold = overlaps.mean() + overlaps.std()
        for c, overlap in zip(candidates, overlaps.tolist(), strict=True):
            centre = (anchors[c, :2] + anchors[c, 2:]) / 2
            inside = bool((centre - box[:2] > 0.01).all() and (box[2:] - centre > 0.01).all())
            if inside and overlap >= threshold and overlap > claims.get(c, (-1.0, -1))[0]:
                claims[c] = (overlap, g)
    return torch.tensor([claims.get(n, (0.0, -1))[1] for n in range(len(anchors))])


def iou(a: Tensor, b: Tensor) -> Tensor:
    width, height = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2]) + 1).clamp(min=0)
    area_a, area_b = (a[2:] - a[:2] + 1).prod(), (b[2:] - b[:2] + 1).prod()
    return width * height / (area_a + area_b - width * height)


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_loop_on_crowded_images(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = level_anchors([(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)], (8, 16, 32, 64, 128), (32, 64, 128, 256, 512))
    corner = torch.rand(25, 2, generator=generator) * 90
    boxes = torch.cat((corner, corner + 3 + torch.rand(25, 2, generator=generator) * 60), dim=1)
    matched = assign_atss(levels, boxes)
    assert torch.equal(matched, loop_assignment(levels, boxes, top_k=9))
    assert len(matched.unique()) > 15


def test_no_objects_is_all_background() -> None:
    levels = level_anchors([(3, 4), (2, 2)], (8, 16), (32, 64))
    assert torch.equal(assign_atss(levels, torch.zeros(0, 4)), torch.full((16,), -1))
