"""Detections drawn on pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GOLDEN_RATIO = 0.6180339887
_FILL_OPACITY = 28
_HALO = (0, 0, 0, 110)


@dataclass(frozen=True)
class DrawnBox:
    """One detection to draw: inclusive xyxy corners in pixels, and its class."""

    corners: Rectangle
    name: str
    label: int
    score: float


def class_color(label: int) -> Color:
    """A colour of its own for every label: hues a golden angle apart never come close to their neighbours."""
    hue = (label * _GOLDEN_RATIO) % 1.0
    lightness = (0.52, 0.62, 0.44)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: Image.Image, boxes: Sequence[DrawnBox]) -> Image.Image:
    """A copy of `image` with boxes, names and scores; lines and letters grow with the picture.

    The most certain detections are drawn last, on top, and get the first choice of a place for their label.
    """
    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas, "RGBA")
    short_side = min(canvas.size)
    line = max(2, round(short_side / 240))
    font = ImageFont.load_default(max(11, round(short_side / 38)))
    by_certainty = sorted(boxes, key=lambda box: box.score, reverse=True)
    for box in reversed(by_certainty):
        _draw_outline(draw, box, line)
    labels: list[tuple[DrawnBox, str, Rectangle]] = []
    for box in by_certainty:
        text = f"{box.name} {box.score:.2f}"
        size = _label_size(draw, text, font, line)
        labels.append((box, text, _label_place(size, box.corners, canvas.size, [place for _, _, place in labels])))
    for box, text, place in reversed(labels):
        _draw_label(draw, text, font, place, class_color(box.label), line)
    return canvas


def _draw_outline(draw: ImageDraw.ImageDraw, box: DrawnBox, line: int) -> None:
    color = class_color(box.label)
    x1, y1, x2, y2 = box.corners
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_HALO, width=line + 2)
    draw.rectangle((x1, y1, x2, y2), fill=(*color, _FILL_OPACITY))
    draw.rectangle((x1, y1, x2, y2), outline=color, width=line)


def _label_size(draw: ImageDraw.ImageDraw, text: str, font: Font, line: int) -> tuple[float, float]:
    _, top, _, bottom = draw.textbbox((0, 0), "Ag", font=font)  # the same height for every label
    return draw.textlength(text, font=font) + 4 * line, bottom - top + 3 * line


def _label_place(
    size: tuple[float, float], corners: Rectangle, canvas: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Where the label goes: the first free place of above, inside and below the box, all within the picture."""
    width, height = size
    x1, y1, x2, y2 = corners
    lefts = [max(0.0, min(left, canvas[0] - width)) for left in (x1, x2 - width)]
    tops = [max(0.0, min(top, canvas[1] - height)) for top in (y1 - height, y1, y2 - height, y2)]
    places = [(left, top, left + width, top + height) for left in lefts for top in tops]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: Font,
    place: Rectangle,
    color: Color,
    line: int,
) -> None:
    draw.rounded_rectangle(place, radius=line, fill=color)
    middle = (place[0] + 2 * line, (place[1] + place[3]) / 2)
    draw.text(middle, text, fill=_readable_on(color), font=font, anchor="lm")


def _readable_on(color: Color) -> Color:
    """Black or white, whichever stands out more (relative luminance of ITU-R BT.709)."""
    luminance = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    return (0, 0, 0) if luminance > 128 else (255, 255, 255)


__all__ = ["DrawnBox", "class_color", "draw_detections"]
