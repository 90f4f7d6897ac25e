"""Images and boxes as GLIP's network wants them: size rule, flip, normalisation, padding, box conventions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PIXEL_MEAN = (103.530, 116.280, 123.675)
"""Means of blue, green and red on the 0-255 scale."""
PIXEL_STD = (57.375, 57.120, 58.395)
SIZE_DIVISOR = 32


def resized_size(width: int, height: int, shortest_edge: int, longest_edge: int) -> tuple[int, int]:
    """(height, width) with the short side at ``shortest_edge``, or less where the long side would pass the other."""
    short, long = min(width, height), max(width, height)
    if long / short * shortest_edge > longest_edge:
        shortest_edge = round(longest_edge * short / long)
    if short == shortest_edge:
        return height, width
    if width < height:
        return int(shortest_edge * height / width), shortest_edge
    return shortest_edge, int(shortest_edge * width / height)


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Bilinear with antialiasing, as PIL does it."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def as_rgb(image: Image.Image | np.ndarray | str | Path) -> Image.Image:
    """An RGB picture from a PIL image, an array (H, W, 3) uint8, or a file."""
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            return opened.convert("RGB")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image array must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    return image.convert("RGB") if image.mode != "RGB" else image


def to_tensor(image: Image.Image, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD) -> Tensor:
    """RGB picture -> normalised float tensor (3, H, W) in BGR order."""
    pixels = torch.from_numpy(np.array(image)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32))
    return pixels.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))


def pad_batch(images: Sequence[Tensor], divisor: int = SIZE_DIVISOR) -> Tensor:
    """Stacks (3, H_i, W_i) to (B, 3, H, W), zeros right and below; H, W the largest ones rounded up to ``divisor``."""
    height, width = (-(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for target, image in zip(batch, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return batch


def coco_to_corners(boxes: Tensor) -> Tensor:
    """COCO (x, y, w, h) -> inclusive corners (x1, y1, x2, y2) with x2 = x1 + max(w - 1, 0)."""
    corner, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([corner, corner + (size - 1).clamp(min=0)], dim=1)


def corners_to_coco(boxes: Tensor) -> Tensor:
    """Inclusive corners (x1, y1, x2, y2) -> COCO (x, y, w, h) with w = x2 - x1 + 1."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], dim=1)


def clip_corners(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes cut to [0, W-1] x [0, H-1], and a mask (G,) of those with x2 > x1 and y2 > y1."""
    limits = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    clipped = boxes.clamp(min=0).minimum(limits)
    return clipped, (clipped[:, 2:] > clipped[:, :2]).all(dim=1)


def scale_boxes(boxes: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Corners times the exact ratios new / old of width and height."""
    ratio_y, ratio_x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Corners of the mirrored image: x1' = W - x2 - 1, x2' = W - x1 - 1."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - x2 - 1, y1, width - x1 - 1, y2], dim=1)
