"""Checks of a COCO annotation file: what can't be meant is an error, what can be mended is mended and counted."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdpt_ext.models.glip.captions import clean_name

logger = logging.getLogger(__name__)

_TABLES = ("images", "annotations", "categories")
_TOLERANCE = 1.0
"""Boxes may pass the border by this many pixels without a word: exporters round."""


def read_annotations(file: Path) -> dict[str, Any]:
    """Reads and checks a COCO instances file, see ``read_json`` and ``check_annotations``."""
    return check_annotations(read_json(file), file)


def check_annotations(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Checks the content of a COCO instances file.

    Boxes are cut to their image; boxes outside it or without area are left out, and both are counted in one warning.

    Raises:
        ValueError: naming the file, the value and the fix, for anything that makes the file useless or ambiguous.
    """
    _check_images(content["images"], file)
    categories = _without_umbrella_category(content["categories"])
    _check_categories(categories, file)
    annotations = _mend_boxes(content, file)
    return {**content, "categories": categories, "annotations": annotations}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object that has the lists of a COCO file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else; the message names the file and what it lacks.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; it should hold the annotations in COCO format")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    missing = [key for key in _TABLES if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{file} has no list {', '.join(missing)}; COCO files have {', '.join(_TABLES)}")
    return content


def _check_images(images: list[dict[str, Any]], file: Path) -> None:
    if not images:
        raise ValueError(f"{file} lists no images: the data set is empty")
    for image in images:
        missing = [key for key in ("id", "file_name", "width", "height") if key not in image]
        if missing:
            raise ValueError(f"{file}: image {image.get('file_name', image)} has no {', '.join(missing)}")
    _refuse_duplicates("image id", (image["id"] for image in images), file)


def _check_categories(categories: list[dict[str, Any]], file: Path) -> None:
    if not categories:
        raise ValueError(f"{file} lists no categories; add the classes under 'categories'")
    for category in categories:
        if "id" not in category or not clean_name(str(category.get("name", ""))).strip():
            raise ValueError(
                f"{file}: category {category} needs an id and a name, for names are what the model reads; "
                "what stands in parentheses is not read"
            )
    _refuse_duplicates("category id", (category["id"] for category in categories), file)
    twice = [name for name, count in Counter(item["name"].lower() for item in categories).items() if count > 1]
    if twice:
        logger.warning("%s: several categories share the name %s; the model can't tell them apart", file, twice)


def _refuse_duplicates(what: str, values: Iterable[Any], file: Path) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: {what} {twice[0]} occurs more than once; ids must be unique")


def _without_umbrella_category(categories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the entry that Roboflow exports put before the classes: named as every class's supercategory."""
    for candidate in categories:
        others = [category for category in categories if category is not candidate]
        parents = {category.get("supercategory") for category in others}
        if candidate.get("supercategory") == "none" and parents == {candidate.get("name")}:
            return others
    return categories


def _mend_boxes(content: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    images = {image["id"]: image for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    kept, cut, outside, flat = [], 0, 0, 0
    for annotation in content["annotations"]:
        _check_references(annotation, images, category_ids, file)
        box = _box_of(annotation, file)
        if box[2] <= 0 or box[3] <= 0:
            flat += 1
            continue
        inside, distance = _clip(box, images[annotation["image_id"]])
        if inside[2] <= 0 or inside[3] <= 0:
            outside += 1
            continue
        cut += distance > _TOLERANCE
        area = annotation.get("area") if inside == box else inside[2] * inside[3]
        area = inside[2] * inside[3] if area is None else area
        kept.append({**annotation, "bbox": inside, "area": area, "iscrowd": annotation.get("iscrowd", 0)})
    _warn_about_boxes(file, {"cut to their image": cut, "left out (outside the image)": outside}, flat)
    return kept


def _warn_about_boxes(file: Path, counts: dict[str, int], flat: int) -> None:
    counts["left out (no width or height)"] = flat
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if told:
        logger.warning("%s: boxes mended: %s; correct the file if that is not meant", file, told)


def _check_references(
    annotation: Mapping[str, Any], images: Mapping[Any, Any], category_ids: set[Any], file: Path
) -> None:
    for key, known in (("image_id", images.keys()), ("category_id", category_ids)):
        if annotation.get(key) not in known:
            raise ValueError(
                f"{file}: annotation {annotation.get('id')} has {key} {annotation.get(key)!r}, which the file does not "
                f"define; add it to '{'images' if key == 'image_id' else 'categories'}' or remove the annotation"
            )


def _box_of(annotation: Mapping[str, Any], file: Path) -> list[float]:
    box = annotation.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    if not numbers or not all(math.isfinite(value) for value in box):  # type: ignore[union-attr]
        raise ValueError(
            f"{file}: annotation {annotation.get('id')} has bbox {box!r}; it must be four numbers [x, y, width, height]"
        )
    return [float(value) for value in box]  # type: ignore[union-attr]


def _clip(box: list[float], image: Mapping[str, Any]) -> tuple[list[float], float]:
    """The box cut to its image, and how far it stood out at most, in pixels."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    distance = max(-left, -top, right - image["width"], bottom - image["height"])
    if distance <= 0:
        return box, 0.0
    left, top = max(left, 0.0), max(top, 0.0)
    right, bottom = min(right, float(image["width"])), min(bottom, float(image["height"]))
    return [left, top, right - left, bottom - top], distance


__all__ = ["check_annotations", "read_annotations", "read_json"]
