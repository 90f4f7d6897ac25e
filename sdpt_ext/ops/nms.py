"""Non-maximum suppression within classes, with GLIP's inclusive box corners."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpt_ext import _library


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, backend: str = "auto") -> Tensor:
    """Indices of the boxes that greedy suppression keeps, by descending score.

    A box is suppressed by a kept box of the same label and a higher score if their IoU exceeds `iou_threshold`.
    Corners are inclusive: width = x2 - x1 + 1.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,) int64.
        iou_threshold: in [0, 1].
        backend: "auto", "ext" (compiled) or "torch" (plain PyTorch).

    Returns:
        (M,) int64.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        MissingKernelError: the compiled operator was asked for and cannot run; it is a RuntimeError.
    """
    _check(boxes, scores, labels, iou_threshold)
    compute_dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    boxes, scores = boxes.detach().to(compute_dtype), scores.detach().to(compute_dtype)
    if _library.resolve_backend("nms", backend, boxes) == "ext":
        return torch.ops.sdpt_ext.nms(boxes, scores, labels, iou_threshold)
    return nms_reference(boxes, scores, labels, iou_threshold)


def nms_reference(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """The same operator in plain PyTorch."""
    remaining = torch.argsort(scores, descending=True, stable=True)
    kept = []
    while remaining.numel() > 0:
        best, others = remaining[0], remaining[1:]
        kept.append(best)
        rivals = (labels[others] == labels[best]) & (_iou(boxes[best], boxes[others]) > iou_threshold)
        remaining = others[~rivals]
    return torch.stack(kept) if kept else labels.new_empty(0)


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """IoU (N,) of one box (4,) with others (N, 4)."""
    shared = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2]) + 1).clamp(min=0).prod(1)
    return shared / (_area(box) + _area(others) - shared)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def _check(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"nms: boxes must have shape (N, 4), not {tuple(boxes.shape)}")
    for name, tensor in (("scores", scores), ("labels", labels)):
        if tensor.shape != boxes.shape[:1]:
            raise ValueError(f"nms: {name} must have shape ({boxes.shape[0]},), not {tuple(tensor.shape)}")
        if tensor.device != boxes.device:
            raise ValueError(f"nms: {name} is on {tensor.device}, but boxes are on {boxes.device}")
    if labels.dtype != torch.int64:
        raise ValueError(f"nms: labels must be int64, not {labels.dtype}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"nms: iou_threshold={iou_threshold} must lie in [0, 1]")


def _fake(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size())


if _library.library().path is not None:
    torch.library.register_fake("sdpt_ext::nms", _fake)
