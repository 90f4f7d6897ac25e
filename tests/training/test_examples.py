from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sdpt_ext.data.shapes import ShapesDataset
from sdpt_ext.training import examples
from sdpt_ext.training.examples import draw_examples


def detections(scenes: ShapesDataset, score: float) -> list[dict[str, object]]:
    """The labelled boxes, and worse ones that would show if more were drawn than there are objects."""
    right = [{**annotation, "score": score} for annotation in scenes.content["annotations"]]
    wrong = [{**detection, "bbox": [0, 0, 250, 250], "score": score / 2} for detection in right]
    return [*wrong, *right]


def draw(path: Path, scenes: ShapesDataset, *scores: float) -> np.ndarray:
    draw_examples(path, scenes, {f"row {score}": detections(scenes, score) for score in scores})
    with Image.open(path) as sheet:
        return np.asarray(sheet)


def test_every_title_has_its_row(tmp_path: Path) -> None:
    scenes = ShapesDataset("night", "test", size=6)
    one, two = draw(tmp_path / "one.png", scenes, 0.9), draw(tmp_path / "two.png", scenes, 0.8, 0.9)
    assert one.shape[1] == 4 * (examples._WIDTH + examples._GAP) + examples._GAP
    assert two.shape == (2 * one.shape[0], *one.shape[1:])
    pictures = slice(examples._TITLE, None)
    assert np.array_equal(two[one.shape[0] :][pictures], one[pictures])  # the second row is the first of the other
    assert not np.array_equal(two[: one.shape[0]][pictures], one[pictures])  # other scores are written on it


def test_no_more_is_drawn_than_there_is(tmp_path: Path) -> None:
    scenes = ShapesDataset("night", "test", size=3)
    sheet = draw(tmp_path / "all.png", scenes, 0.9)
    right = [{**annotation, "score": 0.9} for annotation in scenes.content["annotations"]]
    draw_examples(tmp_path / "right.png", scenes, {"row 0.9": right})
    with Image.open(tmp_path / "right.png") as expected:
        assert np.array_equal(sheet, np.asarray(expected))
    empty = scenes.select([])
    draw_examples(tmp_path / "empty.png", empty, {"nothing": []})
    assert (tmp_path / "empty.png").exists()
