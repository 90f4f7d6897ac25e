from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdpt_ext.data.shapes.drawing import Placement, draw_object
from sdpt_ext.data.shapes.outlines import OUTLINES
from sdpt_ext.data.shapes.vocabulary import COLOURS, SHAPES, TEXTURES, ObjectName


def _draw(name: ObjectName, placement: Placement, seed: int = 1) -> tuple[np.ndarray, tuple[int, int, int, int] | None]:
    canvas = Image.new("RGB", (128, 128), (255, 0, 255))
    box = draw_object(canvas, name, placement, np.random.default_rng(seed))
    return (np.asarray(canvas).astype(int) - (255, 0, 255)).any(axis=2), box


def test_every_shape_has_an_outline() -> None:
    assert set(OUTLINES) == set(SHAPES)
    for outline in OUTLINES.values():
        assert np.abs(outline.polygon).max() <= 1.01


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_box_is_tight(shape: str, texture: str) -> None:
    seed = next(seed for seed in range(99) if _without_shadow(seed, shape, texture))
    painted, box = _draw(ObjectName(shape, "green", texture), Placement(60, 70, 50, turn=20), seed)
    rows, columns = painted.any(axis=1).nonzero()[0], painted.any(axis=0).nonzero()[0]
    extent = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert box is not None
    np.testing.assert_allclose(box, extent, atol=1.01)


def _without_shadow(seed: int, shape: str, texture: str) -> bool:
    """A shadow reaches beyond the object; it is the only thing that is painted right of and below the outline."""
    name = ObjectName(shape, "green", texture)
    painted, box = _draw(name, Placement(60, 70, 50, turn=20), seed)
    assert box is not None
    return not painted[box[3] + 1 :].any()


def test_box_ends_at_the_border_and_is_none_outside() -> None:
    _, box = _draw(ObjectName("square", "red", "solid"), Placement(0, 0, 40))
    assert box is not None
    assert box[:2] == (0, 0)
    assert box[2] < 30
    _, outside = _draw(ObjectName("square", "red", "solid"), Placement(-60, 0, 40))
    assert outside is None


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_is_the_named_one(colour: str) -> None:
    canvas = Image.new("RGB", (64, 64))
    draw_object(canvas, ObjectName("square", colour, "solid"), Placement(32, 32, 50), np.random.default_rng(0))
    pixel = np.array(canvas.getpixel((32, 32)))
    nearest = min(COLOURS, key=lambda name: np.abs(pixel - COLOURS[name]).sum())
    assert nearest == colour


def test_names_describe_what_they_leave_open() -> None:
    object_ = ObjectName("star", "red", "striped")
    assert str(object_) == "red striped star"
    assert ObjectName("star").describes(object_)
    assert ObjectName("star", None, "striped").describes(object_)
    assert not ObjectName("star", "blue").describes(object_)
    assert not ObjectName("ring", "red").describes(object_)
