"""Comparison of ranked detections."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdpt_ext.models.glip.modeling import GlipForObjectDetection, GlipOutput
from sdpt_ext.models.glip.post_processing import post_process_detections

# The last ten of a hundred compete with candidates of almost the same score.
COMPARED = 90


def detect(model: GlipForObjectDetection, output: GlipOutput, meta: dict[str, Any]) -> dict[str, Tensor]:
    """Post-process the single image of a golden case."""
    (detections,) = post_process_detections(
        output.logits,
        output.box_deltas,
        output.centerness,
        model.anchors(output.level_sizes),
        [label_to_tokens(meta)],
        [(meta["H"], meta["W"])],
    )
    return detections


def label_to_tokens(meta: dict[str, Any]) -> dict[int, list[int]]:
    return {int(label): positions for label, positions in meta["label_to_tokens"].items()}


def assert_same_detections(actual: dict[str, Tensor], arrays: dict[str, np.ndarray], prefix: str = "") -> None:
    """Every golden detection has its own partner of the same label, score (1e-4) and box (0.05 px).

    Rank decides between partners, but scores that differ by rounding alone may swap places.
    """
    expected = {name: torch.from_numpy(arrays[f"{prefix}det_{name}"]) for name in ("scores", "labels", "boxes")}
    assert len(actual["scores"]) == len(expected["scores"])
    free = set(range(len(actual["scores"])))
    for rank in range(COMPARED):
        partners = [
            index
            for index in sorted(free, key=lambda index: abs(index - rank))
            if actual["labels"][index] == expected["labels"][rank]
            and (actual["scores"][index] - expected["scores"][rank]).abs() <= 1e-4
            and (actual["boxes"][index] - expected["boxes"][rank]).abs().max() <= 0.05
        ]
        assert partners, f"{prefix}detection {rank} has no partner"
        free.remove(partners[0])
