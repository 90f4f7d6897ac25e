"""Few-shot subsets: some images of every class."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import numpy as np

from sdpt_ext.data.detection import DetectionImages

_Images = TypeVar("_Images", bound=DetectionImages)


def few_shot(dataset: _Images, shots: int, seed: int = 0) -> _Images:
    """At least ``shots`` images of every class (all, if there are fewer), drawn at random by ``seed``.

    Rare classes are served first, and an image counts for every class on it, so that common classes do not fill up the
    subset.

    Raises:
        ValueError: ``shots`` is less than 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    classes_of_image = [set(dataset.labels(index)) for index in range(len(dataset))]
    frequency = Counter(label for classes in classes_of_image for label in classes)
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    chosen: dict[int, None] = {}
    for label in sorted(frequency, key=lambda label: (frequency[label], label)):
        having = sum(label in classes_of_image[index] for index in chosen)
        candidates = [index for index in order if label in classes_of_image[index] and index not in chosen]
        chosen |= dict.fromkeys(candidates[: max(shots - having, 0)])
    return dataset.select(sorted(chosen))


__all__ = ["few_shot"]
