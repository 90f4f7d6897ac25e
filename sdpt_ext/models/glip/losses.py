"""Training losses of GLIP: alignment of regions with words, box regression and centre-ness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from .assignment import BACKGROUND, assign_atss
from .box_coder import centres_and_sizes, decode, encode
from .captions import longest_caption

_FOCAL_ALPHA = 0.25
_REGRESSION_WEIGHT = 2.0
# GLIP gives background anchors the last of its 256 text positions as a target. In a shorter caption that
# position is padding and plays no part, so the slot exists only in a caption that is 256 tokens long.
_NO_OBJECT_SLOT = 255


def detection_loss(
    logits: Tensor,
    box_deltas: Tensor,
    centerness: Tensor,
    anchors_per_level: Sequence[Tensor],
    attention_mask: Tensor,
    labels: Sequence[dict[str, Any]],
) -> dict[str, Tensor]:
    """The three weighted losses of a batch, summed over images and divided by global normalisers.

    Args:
        logits: (B, N, T) region-word scores.
        box_deltas: (B, N, 4) offsets to the anchors.
        centerness: (B, N, 1) centre-ness logits.
        anchors_per_level: per level (n, 4) inclusive xyxy boxes in input pixels; N in total.
        attention_mask: (B, T), non-zero on real tokens; the others have no part in the loss.
        labels: per image "boxes" (G, 4) inclusive xyxy in input pixels and "positive_map" (G, T), non-zero
            on the tokens of each object's class. G may be 0: all anchors are background then.

    Returns:
        "loss_reg", "loss_centerness" and "loss_dot_product_token": scalars, in float32 at least whatever
        autocast says. Their sum is the training loss.

    Raises:
        ValueError: the labels do not fit the batch or the caption.
    """
    _check_labels(labels, logits)
    with torch.autocast(logits.device.type, enabled=False):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits, box_deltas, centerness = logits.to(dtype), box_deltas.to(dtype), centerness.to(dtype)
        anchors = [level.to(dtype) for level in anchors_per_level]
        matched = torch.stack([assign_atss(anchors, label["boxes"]) for label in labels])
        targets = torch.stack([_token_targets(m, x["positive_map"]) for m, x in zip(matched, labels, strict=True)])
        image, position = (matched != BACKGROUND).nonzero(as_tuple=True)
        positive_anchors = torch.cat(anchors)[position]
        target_boxes = _matched_boxes(positive_anchors, matched[image, position], image, labels)
        target_centerness = _centerness(positive_anchors, target_boxes)
        num_positives, centerness_sum = _mean_over_processes(target_centerness)
        predicted_boxes = decode(positive_anchors, box_deltas[image, position])
        distance = giou_loss(predicted_boxes, target_boxes) * target_centerness
        centre_loss = F.binary_cross_entropy_with_logits(
            centerness[image, position, 0], target_centerness, reduction="sum"
        )
        read = longest_caption(attention_mask)
        token_loss = token_focal_loss(logits[..., :read], targets[..., :read], attention_mask[:, :read])
        return {
            "loss_reg": distance.sum() / centerness_sum * _REGRESSION_WEIGHT,
            "loss_centerness": centre_loss / num_positives,
            "loss_dot_product_token": token_loss / num_positives,
        }


def token_focal_loss(logits: Tensor, targets: Tensor, attention_mask: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017; gamma 2) summed over anchors and real tokens.

    Args:
        logits: (B, N, T). targets: (B, N, T) bool. attention_mask: (B, T), non-zero on real tokens.
    """
    # With 0/1 targets the loss of a positive is that of a negative at the opposite logit, up to alpha.
    wrong = torch.where(targets, -logits, logits)
    alpha = torch.where(targets, _FOCAL_ALPHA, 1 - _FOCAL_ALPHA)
    alpha = alpha * (attention_mask != 0)[:, None]
    return -(alpha * wrong.sigmoid().square() * F.logsigmoid(-wrong)).sum()


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019) of paired xyxy boxes (M, 4) -> (M,).

    Areas here are without the +1 of inclusive corners, as in GLIP.
    """
    boxes = torch.cat((boxes[:, :2], torch.maximum(boxes[:, :2], boxes[:, 2:])), dim=1)
    overlap = torch.minimum(boxes[:, 2:], targets[:, 2:]) - torch.maximum(boxes[:, :2], targets[:, :2])
    intersection = torch.where((overlap > 0).all(dim=1), overlap.prod(dim=1), 0.0)
    union = _area(boxes) + _area(targets) - intersection + 1e-7
    hull = torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2])
    hull_area = hull.prod(dim=1) + 1e-7
    return 1 - (intersection / union - (hull_area - union) / hull_area)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def _centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central each anchor lies in its object (FCOS, Tian et al., ICCV 2019): (M,) in (0, 1]."""
    centres, _ = centres_and_sizes(anchors)
    before, after = centres - boxes[:, :2], boxes[:, 2:] - centres
    ratios = torch.minimum(before, after) / torch.maximum(before, after)
    return ratios.prod(dim=1).sqrt()


def _matched_boxes(anchors: Tensor, matched: Tensor, image: Tensor, labels: Sequence[dict[str, Any]]) -> Tensor:
    """(M, 4) objects of the positive anchors, as they come back from the box coder."""
    boxes = torch.cat([label["boxes"].to(anchors) for label in labels])
    counts = torch.tensor([len(label["boxes"]) for label in labels], device=matched.device)
    first = counts.cumsum(0) - counts
    return decode(anchors, encode(anchors, boxes[first[image] + matched]))


def _token_targets(matched: Tensor, positive_map: Tensor) -> Tensor:
    """(N, T) bool: the words of each anchor's object; background anchors get none, or the no-object slot."""
    tokens = positive_map.shape[1]
    background = torch.zeros((1, tokens), dtype=torch.bool, device=matched.device)
    if tokens == _NO_OBJECT_SLOT + 1:
        background[:, _NO_OBJECT_SLOT] = True
    rows = torch.cat((positive_map.to(matched.device) != 0, background))
    return rows[matched]  # BACKGROUND is -1: the last row


def _mean_over_processes(target_centerness: Tensor) -> tuple[Tensor, Tensor]:
    """Positives and sum of their centre-ness, per process on average; neither can divide by zero."""
    totals = torch.stack((target_centerness.new_tensor(len(target_centerness)), target_centerness.sum()))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals)
        totals /= dist.get_world_size()
    return totals[0].clamp(min=1.0), totals[1].clamp(min=torch.finfo(totals.dtype).eps)


def _check_labels(labels: Sequence[dict[str, Any]], logits: Tensor) -> None:
    batch, _, tokens = logits.shape
    if len(labels) != batch:
        raise ValueError(f"got labels of {len(labels)} images for a batch of {batch}")
    for index, label in enumerate(labels):
        expected = (len(label["boxes"]), tokens)
        if tuple(label["positive_map"].shape) != expected:
            raise ValueError(
                f"labels[{index}]['positive_map'] has shape {tuple(label['positive_map'].shape)}, "
                f"expected {expected}: one row per box, one column per token of the caption"
            )


__all__ = ["detection_loss", "giou_loss", "token_focal_loss"]
