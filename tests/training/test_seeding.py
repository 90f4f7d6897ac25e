"""What an epoch draws depends on its number and the seed, and on nothing that happened before."""

from __future__ import annotations

from sdpt_ext.data.shapes import ShapesDataset
from sdpt_ext.training.seeding import SeededItems


def _epoch(items: SeededItems, epoch: int) -> list[tuple[int, int]]:
    items.set_epoch(epoch)
    return [(item["image_id"], item["seed"]) for item in (items[place] for place in range(len(items)))]


def test_a_resumed_epoch_is_that_of_an_uninterrupted_run() -> None:
    dataset, factors = ShapesDataset("base", "train", size=6), [1.0, 4.0, 1.0, 1.0, 2.0, 1.0]
    one, other = (SeededItems(dataset, 3, factors) for _ in range(2))
    _epoch(one, 0)
    assert _epoch(one, 1) == _epoch(other, 1) != _epoch(other, 2)


def test_an_image_drawn_twice_is_augmented_in_two_ways() -> None:
    items = SeededItems(ShapesDataset("base", "train", size=4), 3, [1.0, 1.0, 1.0, 9.0])
    epoch = _epoch(items, 0)
    assert [image for image, _ in epoch].count(epoch[-1][0]) >= 3
    assert len({seed for _, seed in epoch}) == 4


def test_without_factors_every_image_comes_once() -> None:
    dataset = ShapesDataset("base", "train", size=5)
    assert [image for image, _ in _epoch(SeededItems(dataset, 3), 7)] == [record["id"] for record in dataset.records]
