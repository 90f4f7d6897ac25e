"""Small data sets on disk for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def content(images: int = 3, size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    """COCO instances with one box of each of two classes per image; category ids are neither 1-based nor ordered."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]}
            for number in range(1, images + 1)
        ],
        "annotations": [
            {"id": 2 * number + which, "image_id": number, "category_id": category, "bbox": [4, 5, 10, 8], "area": 80}
            for number in range(1, images + 1)
            for which, category in enumerate((7, 3))
        ],
        "categories": [{"id": 7, "name": "ring"}, {"id": 3, "name": "star"}],
    }


def write(root: Path, data: dict[str, Any], split: str = "train", layout: str = "coco") -> Path:
    """Writes annotations and random JPEG pictures; returns the annotation file."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for record in data["images"]:
        pixels = rng.integers(0, 255, (record["height"], record["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / record["file_name"])
    file = root / "annotations" / f"{split}.json" if layout == "coco" else folder / "_annotations.coco.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data))
    return file


def lvis_content() -> dict[str, Any]:
    """LVIS instances as version 1 has them: no file names, and what is known of each image in its record.

    Image 1 shows a star and a ring (not all rings are marked), image 2 a star and no gear; of image 3 nothing is known.
    """
    known: dict[int, tuple[list[int], list[int]]] = {1: ([9], [7]), 2: ([9], []), 3: ([], [])}
    boxes = {(1, 3): [4, 5, 10, 8], (1, 7): [20, 10, 12, 12], (2, 3): [10, 10, 20, 15]}
    return {
        "images": [
            {
                "id": number,
                "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
                "width": 40,
                "height": 30,
                "neg_category_ids": absent,
                "not_exhaustive_category_ids": unfinished,
            }
            for number, (absent, unfinished) in known.items()
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}
            for number, ((image, category), box) in enumerate(boxes.items(), start=1)
        ],
        "categories": [
            {"id": 9, "name": "gear_(wheel)", "frequency": "c"},
            {"id": 7, "name": "ring", "frequency": "r"},
            {"id": 3, "name": "star", "frequency": "f"},
            {"id": 12, "name": "fire_engine", "frequency": "c"},
        ],
    }


def write_lvis(root: Path, data: dict[str, Any], name: str = "lvis_v1_train", images: str = "train2017") -> Path:
    """Writes an annotation file and grey pictures under COCO's names in a folder; returns the annotation file."""
    (root / images).mkdir(parents=True, exist_ok=True)
    for record in data["images"]:
        picture = Image.new("RGB", (record["width"], record["height"]), "grey")
        picture.save(root / images / f"{record['id']:012}.jpg")
    file = root / "annotations" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data))
    return file
