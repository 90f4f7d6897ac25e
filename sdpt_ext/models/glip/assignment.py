"""Which anchors learn which object: Adaptive Training Sample Selection (Zhang et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .box_coder import centres_and_sizes

BACKGROUND = -1
# The centre of a positive anchor lies at least this many pixels inside its object.
_INSIDE_MARGIN = 0.01


@torch.no_grad()
def assign_atss(anchors_per_level: Sequence[Tensor], boxes: Tensor, top_k: int = 9) -> Tensor:
    """Match anchors to the objects of one image.

    On every level the `top_k` anchors nearest to an object are its candidates. A candidate is positive if
    its IoU reaches the mean plus the standard deviation of the object's candidates and if its centre lies
    in the object. An anchor wanted by several objects goes to the one of highest IoU.

    Args:
        anchors_per_level: per level (n, 4) xyxy boxes with inclusive corners; N in total.
        boxes: (G, 4) objects, same convention; G may be 0.

    Returns:
        (N,) int64: index of the matched object, -1 for background.
    """
    anchors = torch.cat(list(anchors_per_level))
    if len(boxes) == 0:
        return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    boxes = boxes.to(anchors)
    candidates = _nearest_per_level(anchors, [len(level) for level in anchors_per_level], boxes, top_k)
    overlap = _pairwise_iou(anchors[candidates], boxes[:, None])
    threshold = overlap.mean(dim=1, keepdim=True) + overlap.std(dim=1, keepdim=True)
    positive = (overlap >= threshold) & _centre_inside(anchors[candidates], boxes[:, None])
    return _highest_overlap(candidates, overlap, positive, len(anchors))


def _nearest_per_level(anchors: Tensor, counts: Sequence[int], boxes: Tensor, top_k: int) -> Tensor:
    """(G, M) indices of the anchors whose centres are nearest to each object's, `top_k` of every level."""
    anchor_centres, _ = centres_and_sizes(anchors)
    box_centres, _ = centres_and_sizes(boxes)
    difference = box_centres[:, None] - anchor_centres
    distances = difference.square().sum(dim=-1).sqrt()
    nearest, start = [], 0
    for count, level in zip(counts, distances.split(list(counts), dim=1), strict=True):
        nearest.append(level.topk(min(top_k, count), dim=1, largest=False).indices + start)
        start += count
    return torch.cat(nearest, dim=1)


def _pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of broadcastable inclusive xyxy boxes (..., 4)."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low + 1).clamp(min=0).prod(dim=-1)
    return intersection / (_area(first) + _area(second) - intersection)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def _centre_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    centres, _ = centres_and_sizes(anchors)
    margins = torch.cat((centres - boxes[..., :2], boxes[..., 2:] - centres), dim=-1)
    return margins.amin(dim=-1) > _INSIDE_MARGIN


def _highest_overlap(candidates: Tensor, overlap: Tensor, positive: Tensor, num_anchors: int) -> Tensor:
    claims = overlap.new_full((len(candidates), num_anchors), -1.0)
    claims.scatter_(1, candidates, overlap.masked_fill(~positive, -1.0))
    best, matched = claims.max(dim=0)
    return matched.masked_fill_(best < 0, BACKGROUND)


__all__ = ["BACKGROUND", "assign_atss"]
