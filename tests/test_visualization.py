from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdpt_ext.visualization import DrawnBox, class_color, draw_detections


def picture(width: int = 200, height: int = 160) -> Image.Image:
    return Image.new("RGB", (width, height), (120, 120, 120))


def test_outline_has_the_colour_of_the_class() -> None:
    before = picture()
    drawn = draw_detections(before, [DrawnBox((40, 60, 150, 140), "cat", 2, 0.9)])
    assert before.getpixel((40, 100)) == (120, 120, 120)
    assert drawn.getpixel((40, 100)) == drawn.getpixel((100, 140)) == class_color(2)
    assert drawn.size == before.size


def test_label_stands_above_its_box_and_is_legible() -> None:
    drawn = np.asarray(draw_detections(picture(), [DrawnBox((40, 60, 150, 140), "cat", 2, 0.9)]))
    label = drawn[48:58, 42:80].reshape(-1, 3).astype(int)
    assert (label == class_color(2)).all(axis=1).mean() > 0.4
    contrast = np.abs(label - np.array(class_color(2))).sum(axis=1)
    assert contrast.max() > 250


def test_neighbouring_classes_differ() -> None:
    colors = np.array([class_color(label) for label in range(1, 21)])
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2)
    assert distances[~np.eye(20, dtype=bool)].min() > 20
    assert np.diag(distances, 1).min() > 150


def test_lines_grow_with_the_picture() -> None:
    def line(side: int) -> int:
        drawn = draw_detections(
            picture(side, side), [DrawnBox((side * 0.3, side * 0.4, side * 0.7, side * 0.8), "a", 1, 1)]
        )
        middle_row = np.asarray(drawn)[round(side * 0.6), : side // 2]
        return int((middle_row == class_color(1)).all(axis=1).sum())

    assert line(200) == 2
    assert line(2000) == 8


@pytest.mark.parametrize("size", [(8, 8), (300, 12), (1, 1)])
def test_tiny_pictures_and_boxes_at_the_border(size: tuple[int, int]) -> None:
    width, height = size
    boxes = [
        DrawnBox((0, 0, width - 1, height - 1), "a rather long name, ü", 5, 0.123),
        DrawnBox((0, 0, 0, 0), "b", 1, 1),
    ]
    assert draw_detections(picture(width, height), boxes).size == size


def test_labels_of_overlapping_boxes_do_not_cover_each_other() -> None:
    boxes = [DrawnBox((60, 60, 190, 150), "cat", 1, 0.9), DrawnBox((60, 60, 190, 150), "dog", 4, 0.8)]
    drawn = np.asarray(draw_detections(picture(), boxes))
    areas = [(drawn == class_color(box.label)).all(axis=2).sum() for box in boxes]
    # The outlines coincide; what is left of the worse detection is its label.
    assert min(areas) > 200


def test_grey_and_transparent_pictures() -> None:
    for mode in ("L", "RGBA", "P"):
        assert draw_detections(Image.new(mode, (50, 50)), []).mode == "RGB"
