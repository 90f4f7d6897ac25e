"""Anchors of the detector: one square per pyramid location."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def level_anchors(
    level_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Anchors of every pyramid level.

    Args:
        level_sizes: (height, width) of each feature map.
        strides: pixels between neighbouring locations of each level.
        sizes: side of the square anchor of each level, in pixels.

    Returns:
        Per level a (height * width, 4) tensor of xyxy boxes with inclusive corners in input pixels,
        row-major. Anchors that leave the image are kept.

    Raises:
        ValueError: the three sequences differ in length.
    """
    if not len(level_sizes) == len(strides) == len(sizes):
        raise ValueError(
            f"expected one stride and one anchor size per pyramid level, got {len(level_sizes)} levels, "
            f"{len(strides)} strides and {len(sizes)} sizes"
        )
    return [
        _square_grid(height, width, stride, size, device, dtype)
        for (height, width), stride, size in zip(level_sizes, strides, sizes, strict=True)
    ]


def _square_grid(
    height: int, width: int, stride: int, size: int, device: torch.device | str | None, dtype: torch.dtype
) -> Tensor:
    first = (stride - 1) / 2
    y = torch.arange(height, device=device, dtype=dtype) * stride + first
    x = torch.arange(width, device=device, dtype=dtype) * stride + first
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    half = (size - 1) / 2
    return torch.cat((centres - half, centres + half), dim=1)


__all__ = ["level_anchors"]
