"""An untrained nano detector that finds things everywhere, and a small data set, both on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from sdpt_ext.models import GlipConfig, GlipForObjectDetection, GlipProcessor

NAMES = ["fox", "raccoon"]


def save_detector(folder: Path) -> Path:
    torch.manual_seed(0)
    model = GlipForObjectDetection(GlipConfig.nano())
    with torch.no_grad():
        model.head.bias0.fill_(-1.0)
    model.save_pretrained(folder)
    GlipProcessor.nano().save_pretrained(folder)
    return folder


def save_pictures(folder: Path, count: int = 3) -> list[str]:
    folder.mkdir(parents=True)
    names = [f"picture{i}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        Image.effect_noise((160 + 16 * i, 120), 60).convert("RGB").save(folder / name)
    return names


def save_dataset(root: Path) -> Path:
    """A data set with a test split of three pictures, one without boxes."""
    names = save_pictures(root / "test")
    boxes = [(1, 1, [10, 10, 60, 50]), (1, 2, [90, 20, 50, 80]), (2, 2, [30, 30, 100, 60])]
    content = {
        "images": [{"id": i, "file_name": n, "width": 144 + 16 * i, "height": 120} for i, n in enumerate(names, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, category, box) in enumerate(boxes, 1)
        ],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "test.json").write_text(json.dumps(content))
    return root
