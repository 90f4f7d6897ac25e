"""Scenes: several objects on a background, with the box and full description of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sdpt_ext.data.shapes.backgrounds import add_noise, draw_background
from sdpt_ext.data.shapes.drawing import Placement, draw_object
from sdpt_ext.data.shapes.outlines import OUTLINES
from sdpt_ext.data.shapes.vocabulary import COLOURS, SHAPES, TEXTURES, ObjectName

REFERENCE_SIDE = 256
MAX_COVERED = 0.35
MIN_CONTRAST = 60
_COLOUR_NAMES = tuple(COLOURS)

Appearance = Callable[[Image.Image, np.random.Generator], Image.Image]
"""Makes another picture of the same size out of a picture."""


@dataclass(frozen=True)
class SceneOptions:
    """What scenes may hold; sizes are for a short side of 256 pixels.

    Attributes:
        objects: fewest and most objects, tried; crowded ones are left out.
        sizes: smallest and largest object.
        noise: largest standard deviation of the pixel noise.
        appearance: changes the finished picture, for example to a night shot.
    """

    objects: tuple[int, int] = (1, 12)
    sizes: tuple[float, float] = (12.0, 150.0)
    noise: float = 12.0
    appearance: Appearance | None = field(default=None)


@dataclass
class Scene:
    """A picture and its objects: ``boxes`` (G, 4) COCO xywh in pixels, ``names`` G full descriptions."""

    image: Image.Image
    boxes: np.ndarray
    names: list[ObjectName]


def random_object(rng: np.random.Generator) -> ObjectName:
    """A fully described object, uniformly drawn."""
    shape, colour, texture = rng.integers((len(SHAPES), len(_COLOUR_NAMES), len(TEXTURES)))
    return ObjectName(SHAPES[shape], _COLOUR_NAMES[colour], TEXTURES[texture])


def complete(name: ObjectName, rng: np.random.Generator) -> ObjectName:
    """The name with its unsaid properties drawn at random."""
    other = random_object(rng)
    return ObjectName(name.shape, name.colour or other.colour, name.texture or other.texture)


def draw_scene(
    size: tuple[int, int],
    choose: Callable[[np.random.Generator], ObjectName],
    options: SceneOptions,
    rng: np.random.Generator,
) -> Scene:
    """A scene of (width, height) pixels whose objects come from ``choose``, fully described."""
    canvas = draw_background(size, rng)
    boxes: list[tuple[int, int, int, int]] = []
    names: list[ObjectName] = []
    for _ in range(int(rng.integers(options.objects[0], options.objects[1] + 1))):
        name = choose(rng)
        placement = _find_place(name, size, boxes, options, rng)
        if placement is None or not _stands_out(canvas, name, placement):
            continue
        box = draw_object(canvas, name, placement, rng)
        if box is not None:
            boxes.append(box)
            names.append(name)
    canvas = _finish(canvas, options, rng)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Scene(canvas, np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), names)


def _find_place(
    name: ObjectName,
    size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
    options: SceneOptions,
    rng: np.random.Generator,
) -> Placement | None:
    scale = min(size) / REFERENCE_SIDE
    smallest, largest = (limit * scale for limit in options.sizes)
    max_turn = OUTLINES[name.shape].max_turn
    for _ in range(8):
        length = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        x, y = rng.uniform(0.3 * length, np.array(size) - 0.3 * length)
        half = 0.5 * length
        if not any(_covered(box, (x - half, y - half, x + half, y + half)) > MAX_COVERED for box in taken):
            stretch = float(np.exp(rng.uniform(-0.1, 0.1)))
            return Placement(float(x), float(y), length, float(rng.uniform(-max_turn, max_turn)), stretch)
    return None


def _covered(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Intersection over the smaller of the two areas."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]), (other[2] - other[0]) * (other[3] - other[1]))


def _stands_out(canvas: Image.Image, name: ObjectName, placement: Placement) -> bool:
    """Whether the object's colour differs from what lies under it, so that a person could see it."""
    x = min(max(int(placement.x), 0), canvas.width - 1)
    y = min(max(int(placement.y), 0), canvas.height - 1)
    under = np.array(canvas.getpixel((x, y)))
    return int(np.abs(under - COLOURS[str(name.colour)]).sum()) >= MIN_CONTRAST


def _finish(canvas: Image.Image, options: SceneOptions, rng: np.random.Generator) -> Image.Image:
    if options.appearance is not None:
        canvas = options.appearance(canvas, rng)
    if options.noise > 0:
        pixels = add_noise(np.asarray(canvas, dtype=np.float32).copy(), rng.uniform(0, options.noise), rng)
        canvas = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
    return canvas
