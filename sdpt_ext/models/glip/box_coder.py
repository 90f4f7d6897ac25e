"""Boxes as offsets to anchors (Faster R-CNN's coder, with inclusive corners)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CENTRE_WEIGHT = 10.0
_SIZE_WEIGHT = 5.0
# A box never decodes to more than this many times its anchor's side, so that exp cannot overflow.
_MAX_LOG_SCALE = math.log(1000.0 / 16)


def centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (..., 2) and sides (..., 2) as (x, y) of inclusive xyxy boxes (..., 4), in pixels."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low + 1


def encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Offsets (..., 4) = (dx, dy, dw, dh) that turn `anchors` (..., 4) into `boxes` (..., 4)."""
    anchor_centre, anchor_size = centres_and_sizes(anchors)
    centre, size = centres_and_sizes(boxes)
    shift = _CENTRE_WEIGHT * (centre - anchor_centre) / anchor_size
    scale = _SIZE_WEIGHT * torch.log(size / anchor_size)
    return torch.cat((shift, scale), dim=-1)


def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
    """Inclusive xyxy boxes (..., 4) in pixels from `anchors` (..., 4) and their offsets (..., 4)."""
    anchor_centre, anchor_size = centres_and_sizes(anchors)
    centre = deltas[..., :2] / _CENTRE_WEIGHT * anchor_size + anchor_centre
    size = torch.exp((deltas[..., 2:] / _SIZE_WEIGHT).clamp(max=_MAX_LOG_SCALE)) * anchor_size
    half = 0.5 * (size - 1)
    return torch.cat((centre - half, centre + half), dim=-1)


__all__ = ["centres_and_sizes", "decode", "encode"]
