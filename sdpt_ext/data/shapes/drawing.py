"""Draws one object: its outline, turned and antialiased, filled with its colour and texture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sdpt_ext.data.shapes.outlines import OUTLINES, Polygon
from sdpt_ext.data.shapes.vocabulary import COLOURS, ObjectName

_SUPERSAMPLING = 2
_MARKED = 96
"""Less covered border pixels do not belong to the object that a person would mark."""
_SHADOW = [value // 3 for value in range(256)]


@dataclass(frozen=True)
class Placement:
    """Where an object goes, in pixels: centre, size of its longer side before turning, turn in degrees, stretch."""

    x: float
    y: float
    size: float
    turn: float = 0.0
    stretch: float = 1.0


def draw_object(
    canvas: Image.Image, name: ObjectName, placement: Placement, rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Paints a fully described object on the canvas.

    Returns:
        The tight box (left, top, right, bottom) of what was painted, right and bottom exclusive; None when nothing
        of it lies on the canvas.
    """
    outline = OUTLINES[name.shape]
    polygon = _place(outline.polygon, placement)
    left, top = np.floor(polygon.min(axis=0)).astype(int) - 1
    width, height = np.ceil(polygon.max(axis=0)).astype(int) + 1 - (left, top)
    offset = np.array([left, top])
    hole = None if outline.hole is None else _place(outline.hole, placement) - offset
    mask = _mask(polygon - offset, hole, (width, height))
    patch = Image.fromarray(_texture(name, (height, width), rng))
    if name.texture == "outlined":
        _draw_border(patch, polygon - offset, hole, placement.size, rng)
    if rng.random() < 0.3:
        _draw_shadow(canvas, mask, (left, top), placement.size)
    canvas.paste(patch, (left, top), mask)
    return _painted_box(mask, (left, top), canvas.size)


def _place(polygon: Polygon, placement: Placement) -> Polygon:
    angle = np.radians(placement.turn)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = (polygon * (placement.stretch, 1 / placement.stretch)) @ rotation
    return turned * (placement.size / 2) + (placement.x, placement.y)


def _mask(polygon: Polygon, hole: Polygon | None, size: tuple[int, int]) -> Image.Image:
    scale = _SUPERSAMPLING
    mask = Image.new("L", (size[0] * scale, size[1] * scale))
    draw = ImageDraw.Draw(mask)
    draw.polygon((polygon * scale).ravel().tolist(), fill=255)
    if hole is not None:
        draw.polygon((hole * scale).ravel().tolist(), fill=0)
    return mask.reduce(scale)


def _painted_box(
    mask: Image.Image, corner: tuple[int, int], canvas_size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    marked = np.asarray(mask) >= _MARKED
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not len(rows):
        return None
    left, top = max(columns[0] + corner[0], 0), max(rows[0] + corner[1], 0)
    right, bottom = min(columns[-1] + 1 + corner[0], canvas_size[0]), min(rows[-1] + 1 + corner[1], canvas_size[1])
    return (int(left), int(top), int(right), int(bottom)) if right > left and bottom > top else None


def _draw_shadow(canvas: Image.Image, mask: Image.Image, corner: tuple[int, int], size: float) -> None:
    shift = max(1, round(size * 0.06))
    shadow = mask.point(_SHADOW).filter(ImageFilter.BoxBlur(shift / 2))
    canvas.paste((10, 10, 14), (corner[0] + shift, corner[1] + shift), shadow)


def _draw_border(
    patch: Image.Image, polygon: Polygon, hole: Polygon | None, size: float, rng: np.random.Generator
) -> None:
    base = patch.getpixel((0, 0))
    ink = (20, 20, 22) if sum(base) > 300 or rng.random() < 0.2 else (238, 238, 238)  # type: ignore[arg-type]
    width = max(2, round(size * 0.12))
    draw = ImageDraw.Draw(patch)
    for ring in (polygon, hole):
        if ring is not None:
            closed = np.concatenate([ring, ring[:2]]).ravel().tolist()
            draw.line(closed, fill=ink, width=width, joint="curve")


def _texture(name: ObjectName, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 pixels of the object's surface."""
    assert name.colour is not None
    colour = np.clip(np.array(COLOURS[name.colour]) * rng.uniform(0.82, 1.12) + rng.uniform(-10, 10, 3), 0, 255)
    if name.texture in ("solid", "outlined"):
        return np.broadcast_to(colour.astype(np.uint8), (*shape, 3)).copy()
    pattern = _PATTERNS[str(name.texture)](shape, rng)
    inks = colour + np.linspace(0, 1, 256)[:, None] * (_second_colour(colour, rng) - colour)
    return inks.astype(np.uint8)[(pattern * np.float32(255)).astype(np.uint8)]


def _second_colour(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A contrasting ink that leaves the object's colour the one that it is named by."""
    target = 255.0 if colour.mean() < rng.uniform(90, 170) else 0.0
    return colour + (target - colour) * rng.uniform(0.55, 0.9)


def _coordinates(shape: tuple[int, int], turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates along and across a direction of ``turn`` radians."""
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x, y = np.arange(shape[1], dtype=np.float32)[None], np.arange(shape[0], dtype=np.float32)[:, None]
    return x * cosine + y * sine, y * cosine - x * sine


def _period(shape: tuple[int, int], rng: np.random.Generator, repeats: tuple[float, float]) -> float:
    return max(max(shape) / rng.uniform(*repeats), 4.0)


def _striped(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    along, _ = _coordinates(shape, rng.uniform(0, np.pi))
    return along / _period(shape, rng, (4, 8)) % 1.0 < rng.uniform(0.35, 0.5)


def _checkered(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    along, across = _coordinates(shape, rng.uniform(0, np.pi))
    period = _period(shape, rng, (4, 7))
    return (np.floor(along / period) + np.floor(across / period)) % 2


def _dotted(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    along, across = _coordinates(shape, rng.uniform(0, np.pi))
    period = _period(shape, rng, (4, 7))
    distance = (along / period % 1.0 - 0.5) ** 2 + (across / period % 1.0 - 0.5) ** 2
    return distance < rng.uniform(0.06, 0.1)


def _grid(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    along, across = _coordinates(shape, rng.uniform(0, np.pi))
    period, thickness = _period(shape, rng, (4, 7)), rng.uniform(0.18, 0.28)
    return (along / period % 1.0 < thickness) | (across / period % 1.0 < thickness)


def _speckled(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    grain = max(1, max(shape) // 28)
    cells = rng.random((-(-shape[0] // grain), -(-shape[1] // grain))) < rng.uniform(0.22, 0.38)
    return cells.repeat(grain, axis=0).repeat(grain, axis=1)[: shape[0], : shape[1]]


def _faded(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    along, _ = _coordinates(shape, rng.uniform(0, 2 * np.pi))
    return np.clip((along - along.min()) / (np.ptp(along) + 1e-6) * 1.3 - 0.3, 0, 1)


_PATTERNS = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "speckled": _speckled,
    "faded": _faded,
    "grid": _grid,
}
