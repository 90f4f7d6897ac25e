"""Backgrounds of generated scenes: colour fields, gradients, patterns and stray strokes that are no object."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

_NOISE = np.random.default_rng(20240229).normal(0.0, 1.0, (640, 640, 3)).astype(np.float32)


def draw_background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random background of (width, height) pixels."""
    canvas = (_plain, _gradient, _clouds, _clouds, _tiles)[rng.integers(5)](size, rng)
    if rng.random() < 0.6:
        _draw_strokes(canvas, rng)
    return canvas


def add_noise(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of standard deviation ``strength`` on (H, W, 3) float pixels up to 512 on a side, in place."""
    height, width = pixels.shape[:2]
    top, left = rng.integers(0, _NOISE.shape[0] - height + 1), rng.integers(0, _NOISE.shape[1] - width + 1)
    pixels += _NOISE[top : top + height, left : left + width] * np.float32(strength)
    return pixels


def _random_colour(rng: np.random.Generator) -> np.ndarray:
    gray = rng.uniform(30, 230)
    return np.clip(gray + rng.uniform(-60, 60, 3) * rng.random(), 0, 255)


def _plain(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", size, tuple(_random_colour(rng).astype(int).tolist()))


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    corners = np.stack([_random_colour(rng) for _ in range(4)]).reshape(2, 2, 3).astype(np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    cells = int(rng.integers(3, 24))
    base, spread = _random_colour(rng), rng.uniform(8, 55)
    field = base + spread * rng.normal(size=(cells, cells, 1)) + 0.3 * spread * rng.normal(size=(cells, cells, 3))
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def _tiles(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Bricks, boards or a lawn of small cells: repeated structure without a nameable outline."""
    rows, columns = rng.integers(2, 40, 2)
    base, spread = _random_colour(rng), rng.uniform(4, 28)
    cells = np.clip(base + spread * rng.normal(size=(rows, columns, 1)), 0, 255).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


def _draw_strokes(canvas: Image.Image, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    for _ in range(int(rng.integers(1, 12))):
        start, points = rng.uniform((0, 0), (width, height)), int(rng.integers(2, 6))
        path = start + np.cumsum(rng.normal(0, min(width, height) / 6, (points, 2)), axis=0)
        colour = tuple(_random_colour(rng).astype(int).tolist())
        draw.line(path.ravel().tolist(), fill=colour, width=int(rng.integers(1, 5)), joint="curve")
