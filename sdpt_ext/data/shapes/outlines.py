"""Outlines of the shapes: polygons in the unit square [-1, 1] x [-1, 1], y pointing down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Polygon = np.ndarray
"""(P, 2) float corners x, y."""


@dataclass(frozen=True)
class Outline:
    """A filled polygon, an optional hole in it, and how far it may turn before it would pass for another shape."""

    polygon: Polygon
    hole: Polygon | None = None
    max_turn: float = 180.0


def _arc(centre: tuple[float, float], radius: float, start: float, end: float, points: int = 28) -> Polygon:
    angles = np.radians(np.linspace(start, end, points))
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


def _disc(width: float = 1.0, height: float = 1.0) -> Polygon:
    return _arc((0, 0), 1.0, 0, 360, 40) * (width, height)


def _regular(corners: int) -> Polygon:
    return _arc((0, 0), 1.0, -90, 270, corners + 1)[:-1]


def _polar(radius: Callable[[np.ndarray], np.ndarray], points: int) -> Polygon:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = radius(angles)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _corners(*values: float) -> Polygon:
    return np.array(values, dtype=float).reshape(-1, 2)


def _star() -> Polygon:
    return _regular(10) * np.where(np.arange(10) % 2 == 0, 1.0, 0.42)[:, None]


def _cross() -> Polygon:
    arm = _corners(-0.3, -1, 0.3, -1, 0.3, -0.3)
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, quarter) for quarter in range(4)])


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2.5) / 15], axis=1)


def _drop() -> Polygon:
    return np.concatenate([_corners(0, -1), _arc((0, 0.35), 0.65, -30, 210)])


def _crescent() -> Polygon:
    return np.concatenate([_arc((0, 0), 1.0, 60, 300), _arc((0.42, 0), 0.87, 275, 85)])


def _gear() -> Polygon:
    return _polar(lambda angle: np.where(np.sin(9 * angle) > 0, 1.0, 0.74), 108)


def _cloud() -> Polygon:
    bumps = [_arc((-0.5, 0.1), 0.5, 90, 250, 12), _arc((-0.05, -0.25), 0.55, 200, 330, 14)]
    return np.concatenate([*bumps, _arc((0.55, 0.15), 0.45, 270, 450, 12)])


OUTLINES: dict[str, Outline] = {
    "circle": Outline(_disc()),
    "oval": Outline(_disc(1.0, 0.52)),
    "ring": Outline(_disc(), hole=_disc() * 0.56),
    "semicircle": Outline(_arc((0, 0.5), 1.0, 180, 360)),
    "crescent": Outline(_crescent()),
    "drop": Outline(_drop()),
    "heart": Outline(_heart()),
    "flower": Outline(_polar(lambda angle: 0.72 + 0.28 * np.cos(6 * angle), 72), hole=_disc() * 0.22),
    "gear": Outline(_gear(), hole=_disc() * 0.3),
    "cloud": Outline(_cloud(), max_turn=25),
    "square": Outline(_corners(-0.85, -0.85, 0.85, -0.85, 0.85, 0.85, -0.85, 0.85), max_turn=15),
    "rectangle": Outline(_corners(-1, -0.48, 1, -0.48, 1, 0.48, -1, 0.48)),
    "diamond": Outline(_corners(0, -1, 0.8, 0, 0, 1, -0.8, 0), max_turn=15),
    "triangle": Outline(_corners(0, -0.9, 1, 0.8, -1, 0.8)),
    "trapezoid": Outline(_corners(-0.5, -0.6, 0.5, -0.6, 1, 0.6, -1, 0.6)),
    "pentagon": Outline(_regular(5)),
    "hexagon": Outline(_regular(6)),
    "star": Outline(_star()),
    "cross": Outline(_cross()),
    "arrow": Outline(_corners(0, -1, 0.85, -0.05, 0.35, -0.05, 0.35, 1, -0.35, 1, -0.35, -0.05, -0.85, -0.05)),
    "bolt": Outline(_corners(0.25, -1, -0.65, 0.15, -0.08, 0.15, -0.3, 1, 0.65, -0.25, 0.08, -0.25, 0.55, -1)),
    "hourglass": Outline(_corners(-0.75, -1, 0.75, -1, 0.12, 0, 0.75, 1, -0.75, 1, -0.12, 0)),
    "chevron": Outline(_corners(-1, 0.1, 0, -0.8, 1, 0.1, 1, 0.75, 0, -0.15, -1, 0.75)),
    "house": Outline(_corners(0, -1, 1, -0.1, 0.7, -0.1, 0.7, 0.9, -0.7, 0.9, -0.7, -0.1, -1, -0.1), max_turn=25),
}
