"""examples.png: some test pictures with what the model found on them, before it was tuned and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sdpt_ext.data.atomic import replacing
from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.visualization import DrawnBox, draw_detections

_PICTURES, _WIDTH, _GAP, _TITLE = 4, 360, 8, 26


def draw_examples(path: Path, dataset: DetectionImages, predictions: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw some pictures that hold objects into a PNG file, one row of them for every title.

    Each shows its most certain detections, as many as it has labelled objects.

    Args:
        path: the file, replaced whole.
        predictions: COCO results for the data set, by the title of their row.
    """
    labelled = [index for index in range(len(dataset)) if dataset.annotations(index)]
    chosen = [labelled[place * len(labelled) // _PICTURES] for place in range(min(_PICTURES, len(labelled)))]
    rows = {title: _draw_row(dataset, chosen, found) for title, found in predictions.items()}
    with replacing(path) as temporary:
        _sheet(rows).save(temporary, format="PNG")


def _draw_row(
    dataset: DetectionImages, indices: Sequence[int], predictions: Sequence[Mapping[str, Any]]
) -> list[Image.Image]:
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for detection in sorted(predictions, key=lambda detection: -detection["score"]):
        by_image[detection["image_id"]].append(detection)
    drawn = []
    for index in indices:
        picture = dataset.load_image(index)
        scale = _WIDTH / picture.width
        shown = by_image[dataset.records[index]["id"]][: len(dataset.annotations(index))]
        small = picture.resize((_WIDTH, round(picture.height * scale)))
        drawn.append(draw_detections(small, [_drawn_box(detection, dataset, scale) for detection in shown]))
    return drawn


def _drawn_box(detection: Mapping[str, Any], dataset: DetectionImages, scale: float) -> DrawnBox:
    x, y, width, height = (scale * value for value in detection["bbox"])
    label = dataset.label_of_category[detection["category_id"]]
    return DrawnBox((x, y, x + width, y + height), dataset.class_names[label - 1], label, detection["score"])


def _sheet(rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """The rows one below the other on white, each under its title."""
    heights = [_TITLE + max((picture.height for picture in row), default=0) + _GAP for row in rows.values()]
    columns = max((len(row) for row in rows.values()), default=0)
    sheet = Image.new("RGB", (columns * (_WIDTH + _GAP) + _GAP, sum(heights)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for index, (title, row) in enumerate(rows.items()):
        top = sum(heights[:index])
        draw.text((_GAP, top + 4), title, "black", font)
        for column, picture in enumerate(row):
            sheet.paste(picture, (_GAP + column * (_WIDTH + _GAP), top + _TITLE))
    return sheet


__all__ = ["draw_examples"]
