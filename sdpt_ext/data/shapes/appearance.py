"""Changes of appearance that a detector trained on plain scenes has not seen."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from sdpt_ext.data.shapes.backgrounds import add_noise

_HEAT = np.array(
    [[0, 0, 24], [60, 8, 96], [150, 28, 100], [220, 70, 40], [250, 160, 20], [255, 240, 170]], dtype=np.float64
)
"""Colours of rising temperature."""


def night(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dark, bluish, lit by one lamp, with the noise of a sensor at high gain."""
    width, height = image.size
    y, x = np.ogrid[:height, :width]
    lamp = rng.uniform((0, 0), (width, height))
    distance = np.hypot(x - lamp[0], y - lamp[1]) / max(width, height)
    light = rng.uniform(0.22, 0.36) + 0.4 * np.exp(-((distance / rng.uniform(0.25, 0.5)) ** 2))
    pixels = np.asarray(image, dtype=np.float32) * light[:, :, None].astype(np.float32)
    pixels *= np.array([0.7, 0.85, 1.25], dtype=np.float32)
    return _picture(add_noise(pixels, rng.uniform(4, 9), rng))


def thermal(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness shown as temperature: colours lose their meaning, outlines stay."""
    gray = image.convert("L").filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.4)))
    steps = np.linspace(0, 255, len(_HEAT))
    table = np.stack([np.interp(np.arange(256), steps, _HEAT[:, channel]) for channel in range(3)], axis=1)
    values = np.asarray(gray)
    return _picture(table[255 - values if rng.random() < 0.5 else values])


def sketch(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Pencil on paper: dark edges, a trace of the shading."""
    gray = image.convert("L").filter(ImageFilter.GaussianBlur(0.8))
    edges = np.asarray(gray.filter(ImageFilter.FIND_EDGES), dtype=np.float32)
    edges[[0, -1], :] = edges[:, [0, -1]] = 0
    shading = np.asarray(gray, dtype=np.float32) * 0.15 + 205
    paper = np.array([1.0, 0.98, 0.92], dtype=np.float32)
    return _picture(np.clip(shading - edges * rng.uniform(2.5, 4.0), 20, 255)[:, :, None] * paper)


def fog(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Thick fog: blurred, pale, little contrast."""
    soft = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 1.8)))
    height = soft.size[1]
    density = np.linspace(rng.uniform(0.72, 0.84), rng.uniform(0.5, 0.7), height, dtype=np.float32)[:, None, None]
    return _picture(np.asarray(soft, dtype=np.float32) * (1 - density) + np.float32(rng.uniform(195, 225)) * density)


def negative(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A film negative: every colour is the opposite one."""
    return ImageOps.invert(image)


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
