"""Random crop and zoom, mirror and saturation of photographs with their COCO boxes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

from sdpt_ext.data.transforms import PIXEL_MEAN

_FILL = tuple(round(value) for value in reversed(PIXEL_MEAN))
"""Zero after normalisation, as the padding of batches."""


def zoom_crop(
    image: Image.Image, boxes: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Scales the picture by a random amount and cuts or pads it to ``size`` (width, height).

    Returns:
        The picture; the boxes (G, 4) xywh cut to it; the share (G,) of each box's area that is still visible.
    """
    original = np.array(image.size, dtype=np.float64)
    fit = min(size[0] / original[0], size[1] / original[1])
    zoom, stretch = (1.0, 1.0) if rng.random() < 0.3 else (_log_uniform(rng, 0.7, 1.9), _log_uniform(rng, 0.87, 1.15))
    scale = fit * zoom * np.array([stretch**0.5, stretch**-0.5])
    scaled, target = original * scale, np.array(size, dtype=np.float64)
    # Where the scaled picture's corner lands: left of the frame when it is larger, inside when it is smaller.
    offset = np.where(scaled > target, -rng.random(2) * (scaled - target), rng.random(2) * (target - scaled) * 0.5)
    offset = np.round(offset)
    picture = _cut(image, offset, scale, size)
    return picture, *_cut_boxes(boxes, offset, scale, size)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _cut(image: Image.Image, offset: np.ndarray, scale: np.ndarray, size: tuple[int, int]) -> Image.Image:
    start = np.maximum(offset, 0)
    stop = np.minimum(np.round(offset + np.array(image.size) * scale), size)
    inner = (max(int(stop[0] - start[0]), 1), max(int(stop[1] - start[1]), 1))
    low = np.clip((start - offset) / scale, 0, image.size)
    high = np.clip((stop - offset) / scale, 0, image.size)
    scaled = image.resize(inner, Image.Resampling.BILINEAR, box=(low[0], low[1], high[0], high[1]))
    if inner == tuple(size):
        return scaled
    canvas = Image.new("RGB", size, _FILL)
    canvas.paste(scaled, (int(start[0]), int(start[1])))
    return canvas


def _cut_boxes(
    boxes: np.ndarray, offset: np.ndarray, scale: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    low = boxes[:, :2] * scale + offset
    high = (boxes[:, :2] + boxes[:, 2:]) * scale + offset
    area = (high - low).prod(axis=1)
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    visible = (high - low).prod(axis=1) / np.maximum(area, 1e-6)
    return np.concatenate([low, high - low], axis=1).astype(np.float32), visible


def flip(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Mirror image, with its boxes (G, 4) xywh."""
    boxes = boxes.copy()
    boxes[:, 0] = image.width - boxes[:, 0] - boxes[:, 2]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), boxes


def saturate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Sometimes more or less colourful, so that a name does not hang on the hue alone."""
    if rng.random() < 0.3:
        return ImageEnhance.Color(image).enhance(rng.uniform(0.4, 1.5))
    return image
