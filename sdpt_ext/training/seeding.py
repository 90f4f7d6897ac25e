"""Random draws that depend on (seed, epoch, place) alone, so that a resumed run sees the same pictures."""

from __future__ import annotations

import random
from typing import Any

from torch.utils.data import Dataset

from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.repeat_factors import systematic_sample


class SeededItems(Dataset[dict[str, Any]]):
    """One epoch of a data set: as many items as it has, each with a `seed` that the collator draws augmentation from.

    Args:
        items: the data set.
        seed: of everything that is drawn.
        factors: how often each image comes, relative to the others; every image comes once if not given.
    """

    def __init__(self, items: DetectionImages, seed: int, factors: list[float] | None = None) -> None:
        self.items = items
        self.seed = seed
        self.factors = [1.0] * len(items) if factors is None else factors
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the images of an epoch."""
        self.epoch = epoch
        self._drawn = systematic_sample(self.factors, self._draw("images"))

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.items[self._drawn[place]], "seed": self._draw(place)}

    def _draw(self, what: int | str) -> int:
        # A string seed is hashed whole (SHA-512), so neighbouring places give unrelated streams.
        return random.Random(f"{self.seed}/{self.epoch}/{what}").getrandbits(32)
