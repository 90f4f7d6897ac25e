from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sdpt_ext.data.coco import DetectionDataset
from sdpt_ext.data.few_shot import few_shot
from sdpt_ext.data.shapes import ShapesDataset
from tests.data import folders


def _images_per_class(dataset: DetectionDataset | ShapesDataset) -> Counter[int]:
    return Counter(label for index in range(len(dataset)) for label in set(dataset.labels(index)))


def test_every_class_gets_its_images() -> None:
    everything = ShapesDataset("base", "train", size=60)
    subset = few_shot(everything, 3, seed=1)
    counts = _images_per_class(subset)
    assert set(counts) == set(_images_per_class(everything))
    assert min(counts.values()) >= 3
    assert 3 <= len(subset) <= 3 * len(everything.class_names)


def test_seed_decides() -> None:
    dataset = ShapesDataset("base", "train", size=60)

    def ids(seed: int) -> list[int]:
        return [record["id"] for record in few_shot(dataset, 1, seed).records]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


def test_rare_class_gets_all_it_has(tmp_path: Path) -> None:
    data = folders.content(6)
    data["annotations"] = [item for item in data["annotations"] if item["category_id"] == 3 or item["image_id"] == 4]
    folders.write(tmp_path, data)
    subset = few_shot(DetectionDataset(tmp_path, "train"), 2)
    assert _images_per_class(subset) == {1: 2, 2: 1}
    assert len(subset.coco.imgs) == 2


def test_shots_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        few_shot(ShapesDataset("base", "train", size=2), 0)
