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
