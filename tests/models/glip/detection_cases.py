"""Raw head outputs of the golden cases f (losses) and g (post-processing)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdpt_ext.models.glip.anchors import level_anchors

from ...golden import cases

STRIDES = (8, 16, 32, 64, 128)
SIZES = (64, 128, 256, 512, 1024)


def head_levels(
    meta: dict[str, Any], dtype: torch.dtype, dot_scale: float, dot_shift: float
) -> dict[str, list[Tensor]]:
    """Per level, as the official head lays them out: "reg" (B,4,h,w), "ctr" (B,1,h,w), "dot" (B,hw,256)."""
    batch, case = len(meta["image_hw"]), meta["case"]
    levels: dict[str, list[Tensor]] = {"reg": [], "ctr": [], "dot": []}
    for i, (h, w) in enumerate(meta["level_sizes"]):
        levels["reg"].append(cases.inputs(f"{case}.reg{i}", (batch, 4, h, w), dtype, 0.5))
        levels["ctr"].append(cases.inputs(f"{case}.ctr{i}", (batch, 1, h, w), dtype))
        # The official run adds the shift to float32 numbers.
        levels["dot"].append(
            (cases.inputs(f"{case}.dot{i}", (batch, h * w, 256), scale=dot_scale) + dot_shift).to(dtype)
        )
    return levels


def concatenated(levels: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """(logits (B,N,T), box deltas (B,N,4), centre-ness (B,N,1))."""

    def flat(maps: list[Tensor]) -> Tensor:
        return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)

    return torch.cat(levels["dot"], dim=1), flat(levels["reg"]), flat(levels["ctr"])


def anchors(meta: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return level_anchors([tuple(size) for size in meta["level_sizes"]], STRIDES, SIZES, dtype=dtype)
