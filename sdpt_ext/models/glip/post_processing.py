"""From the detector's raw outputs to a ranked list of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ... import ops
from .box_coder import decode


@torch.no_grad()
def post_process_detections(
    logits: Tensor,
    box_deltas: Tensor,
    centerness: Tensor,
    anchors_per_level: Sequence[Tensor],
    label_to_tokens: Sequence[Mapping[int, Sequence[int]]],
    image_sizes: Sequence[tuple[int, int]] | Tensor,
    score_threshold: float = 0.05,
    pre_nms_top_n: int = 1000,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
) -> list[dict[str, Tensor]]:
    """Decode, filter and rank the detections of a batch as GLIP does at test time.

    A class scores the mean probability of its tokens; the score of a detection is the geometric mean of that
    and of its centre-ness. Only the class score meets `score_threshold`.

    Args:
        logits: (B, N, T) region-word scores.
        box_deltas: (B, N, 4) offsets to the anchors.
        centerness: (B, N, 1) centre-ness logits.
        anchors_per_level: per level (n, 4) inclusive xyxy boxes in input pixels; N in total.
        label_to_tokens: per image the token positions of every class label in its caption.
        image_sizes: per image (height, width) in input pixels, without padding.
        pre_nms_top_n: detections that each level may pass on.
        nms_threshold: a box is dropped if it overlaps a better one of its class by more than this IoU.
        max_detections: boxes per image; more only if they tie with the last.

    Returns:
        Per image "scores" (D,), "labels" (D,) int64 and "boxes" (D, 4) inclusive xyxy in input pixels, by
        descending score.

    Raises:
        ValueError: a token position lies outside the caption, or a list does not fit the batch.
    """
    if not len(label_to_tokens) == len(image_sizes) == len(logits):
        raise ValueError(
            f"expected label_to_tokens and image_sizes for a batch of {len(logits)}, "
            f"got {len(label_to_tokens)} and {len(image_sizes)}"
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits, box_deltas, centerness = logits.to(dtype), box_deltas.to(dtype), centerness.to(dtype)
    anchors_per_level = [anchors.to(box_deltas) for anchors in anchors_per_level]
    detections = []
    with torch.autocast(logits.device.type, enabled=False):
        for index, (tokens, size) in enumerate(zip(label_to_tokens, image_sizes, strict=True)):
            labels, averaging = class_averaging(tokens, logits[index])
            scores, columns, boxes = _candidates(
                logits[index].sigmoid() @ averaging,
                box_deltas[index],
                centerness[index].sigmoid(),
                anchors_per_level,
                score_threshold,
                pre_nms_top_n,
            )
            boxes = _clip(boxes, int(size[0]), int(size[1]))
            kept = ops.nms(boxes, scores, labels[columns], nms_threshold)
            kept = kept[_within_limit(scores[kept], max_detections)]
            detections.append({"scores": scores[kept], "labels": labels[columns[kept]], "boxes": boxes[kept]})
    return detections


def class_averaging(label_to_tokens: Mapping[int, Sequence[int]], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (C,) of the classes that have tokens, and the (T, C) matrix that averages over these."""
    num_tokens = logits.shape[-1]
    classes = [(label, list(tokens)) for label, tokens in sorted(label_to_tokens.items()) if len(tokens) > 0]
    matrix = torch.zeros((num_tokens, len(classes)), dtype=logits.dtype)
    for column, (label, tokens) in enumerate(classes):
        if min(tokens) < 0 or max(tokens) >= num_tokens:
            raise ValueError(
                f"label {label} stands at token positions {tokens}, but the caption has only {num_tokens} tokens"
            )
        matrix[tokens, column] = 1 / len(tokens)
    labels = torch.tensor([label for label, _ in classes], dtype=torch.int64)
    return labels.to(logits.device), matrix.to(logits.device)


def _candidates(
    class_scores: Tensor,
    box_deltas: Tensor,
    quality: Tensor,
    anchors_per_level: Sequence[Tensor],
    score_threshold: float,
    top_n: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (location, class) pairs of every level: scores (M,), class columns (M,), boxes (M, 4)."""
    found = []
    counts = [len(anchors) for anchors in anchors_per_level]
    levels = zip(anchors_per_level, *(x.split(counts) for x in (class_scores, box_deltas, quality)), strict=True)
    for anchors, level_scores, deltas, level_quality in levels:
        location, column = (level_scores > score_threshold).nonzero(as_tuple=True)
        score = level_scores[location, column] * level_quality[location, 0]
        if len(score) > top_n:
            score, best = score.topk(top_n)
            location, column = location[best], column[best]
        found.append((score.sqrt(), column, decode(anchors[location], deltas[location])))
    scores, columns, boxes = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, columns, boxes


def _clip(boxes: Tensor, height: int, width: int) -> Tensor:
    last_pixel = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), last_pixel)


def _within_limit(sorted_scores: Tensor, limit: int) -> Tensor:
    """Mask of the first `limit` of descending scores and of those that tie with the last of them."""
    if len(sorted_scores) <= limit:
        return torch.ones_like(sorted_scores, dtype=torch.bool)
    return sorted_scores >= sorted_scores[limit - 1]


__all__ = ["class_averaging", "post_process_detections"]
