from __future__ import annotations

import itertools

import numpy as np
import pytest

from sdpt_ext.data.shapes import TASKS, ShapesDataset
from sdpt_ext.data.shapes.dataset import SPLIT_SIZES
from sdpt_ext.data.shapes.vocabulary import ObjectName


@pytest.mark.parametrize("task", TASKS)
def test_task_is_well_formed(task: str) -> None:
    dataset = ShapesDataset(task, "train", size=20)
    assert len(dataset) == 20
    assert dataset.class_names == list(TASKS[task].classes)
    labels = [label for index in range(20) for label in dataset.labels(index)]
    assert set(labels) <= set(range(1, len(dataset.class_names) + 1))
    assert len(labels) > 20
    for index in range(20):
        item = dataset[index]
        assert item["image"].size == (256, 256)
        x, y, width, height = item["boxes"].unbind(1)
        assert ((x >= 0) & (y >= 0) & (x + width <= 256) & (y + height <= 256) & (width > 0) & (height > 0)).all()


def test_default_sizes_of_the_splits() -> None:
    assert len(ShapesDataset("base", "val")) == SPLIT_SIZES["val"]


def _pixels(dataset: ShapesDataset) -> np.ndarray:
    return np.stack([np.asarray(dataset[index]["image"]) for index in range(len(dataset))])


def test_same_seed_same_scenes_and_else_others() -> None:
    first = ShapesDataset("night", "test", size=3)
    again = ShapesDataset("night", "test", size=5)
    np.testing.assert_array_equal(_pixels(first), _pixels(again)[:3])
    assert first.content["annotations"] == again.content["annotations"][: len(first.content["annotations"])]
    for other in (ShapesDataset("night", "test", seed=1, size=3), ShapesDataset("night", "val", size=3)):
        assert (_pixels(first) != _pixels(other)).any(axis=(1, 2, 3)).all()


def test_some_objects_belong_to_no_class() -> None:
    task = TASKS["coloured"]
    drawn = [task.choose(np.random.default_rng(seed)) for seed in range(200)]
    unlabelled = [name for name in drawn if task.label_of(name) is None]
    assert 20 < len(unlabelled) < 80


@pytest.mark.parametrize("task", TASKS)
def test_no_object_belongs_to_two_classes(task: str) -> None:
    for one, other in itertools.combinations(TASKS[task].classes.values(), 2):
        both = ObjectName(one.shape, one.colour or other.colour, one.texture or other.texture)
        assert not (one.describes(both) and other.describes(both))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no generated task 'nigt'; known are(\n.*)*shapes:night"):
        ShapesDataset("nigt", "train")
    with pytest.raises(ValueError, match="splits train, val, test, not 'valid'"):
        ShapesDataset("night", "valid")
