"""Random augmentation that depends on (seed, epoch, image) alone, so that a resumed run sees the same pictures."""

from __future__ import annotations

import random
from typing import Any

from torch.utils.data import Dataset

from sdpt_ext.data.detection import DetectionImages


class SeededItems(Dataset[dict[str, Any]]):
    """Adds a `seed` to every item of a data set; the training collator draws the item's augmentation from it."""

    def __init__(self, items: DetectionImages, seed: int) -> None:
        self.items = items
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # A string seed is hashed whole (SHA-512), so neighbouring indices give unrelated streams.
        seed = random.Random(f"{self.seed}/{self.epoch}/{index}").getrandbits(32)
        return {**self.items[index], "seed": seed}
