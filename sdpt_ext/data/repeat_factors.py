"""How often training should draw each image, so that rare classes are seen (repeat factors of LVIS's baselines)."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import numpy as np

from sdpt_ext.data.detection import DetectionImages


def repeat_factors(dataset: DetectionImages, threshold: float) -> list[float]:
    """``max(1, sqrt(threshold / f))`` of each image's rarest class, f being the share of the images that show it.

    Images without boxes get 1.

    Source: the baselines of Gupta et al., "LVIS", CVPR 2019, whose threshold is 0.001.

    Raises:
        ValueError: the threshold is no share from 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"the repeat threshold must lie between 0 and 1, got {threshold}")
    classes_of_image = [set(dataset.labels(index)) for index in range(len(dataset))]
    shown_on = Counter(label for classes in classes_of_image for label in classes)
    factors = {label: max(1.0, sqrt(threshold * len(dataset) / count)) for label, count in shown_on.items()}
    return [max((factors[label] for label in classes), default=1.0) for classes in classes_of_image]


def systematic_sample(factors: list[float], seed: int) -> list[int]:
    """As many indices as there are factors, in ascending order, each about as often as its factor's share.

    How often an index comes is its expected number, rounded up or down by the seed; equal factors give each once.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(factors))  # neighbours of a fixed order would never come together
    expected = np.asarray(factors)[order] * len(factors) / np.sum(factors)
    # Rounded, for sums of equal factors must not fall short of the whole numbers that they are.
    edges = np.floor(np.cumsum(expected).round(6) + rng.random())
    counts = np.empty(len(factors), dtype=np.int64)
    counts[order] = np.diff(edges, prepend=0.0)
    return np.repeat(np.arange(len(factors)), counts).tolist()


__all__ = ["repeat_factors", "systematic_sample"]
