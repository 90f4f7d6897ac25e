"""Images with rare classes are drawn more often, and exactly as often as their factors say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sdpt_ext.data.coco import DetectionDataset
from sdpt_ext.data.repeat_factors import repeat_factors, systematic_sample
from tests.data import folders


@pytest.fixture
def rare_rings(tmp_path: Path) -> DetectionDataset:
    """Eight images: seven show stars, the first two of them rings too, the last one nothing."""
    data = folders.content(8)
    data["annotations"] = [
        item
        for item in data["annotations"]
        if (item["category_id"] == 3 or item["image_id"] <= 2) and item["image_id"] < 8
    ]
    folders.write(tmp_path, data)
    return DetectionDataset(tmp_path, "train")


def test_an_image_counts_for_its_rarest_class(rare_rings: DetectionDataset) -> None:
    ring, star = 2.0, (8 / 7) ** 0.5
    assert repeat_factors(rare_rings, 1.0) == pytest.approx([ring, ring, *[star] * 5, 1.0])


def test_classes_above_the_threshold_are_not_repeated(rare_rings: DetectionDataset) -> None:
    assert repeat_factors(rare_rings, 0.5) == pytest.approx([2**0.5] * 2 + [1.0] * 6)
    assert repeat_factors(rare_rings, 0.0) == [1.0] * 8


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_share(rare_rings: DetectionDataset, threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        repeat_factors(rare_rings, threshold)


@pytest.mark.parametrize("factor", [1.0, 1.3, 7**0.5])
@pytest.mark.parametrize("count", [1, 155, 10_007])
def test_equal_factors_draw_every_image_once(factor: float, count: int) -> None:
    assert all(systematic_sample([factor] * count, seed) == list(range(count)) for seed in range(5))


def test_each_image_comes_its_expected_number_of_times_rounded_up_or_down() -> None:
    factors = np.random.default_rng(0).uniform(1, 4, 101)
    expected = factors * 101 / factors.sum()
    totals = np.zeros(101)
    for seed in range(400):
        drawn = systematic_sample(factors.tolist(), seed)
        counts = np.bincount(drawn, minlength=101)
        assert len(drawn) == 101
        assert (np.abs(counts - expected) < 1).all()
        totals += counts
    # A count is one of two neighbours: its standard error over 400 epochs is at most 0.025.
    assert np.abs(totals / 400 - expected).max() < 0.1


def test_seed_decides_who_is_drawn() -> None:
    factors = [1.0, 2.0, 3.0] * 20
    draws = [systematic_sample(factors, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    # Even where all images of a kind are alike, it is not always the same ones.
    assert len({index for seed in range(30) for index in Counter(systematic_sample(factors, seed))}) == 60
