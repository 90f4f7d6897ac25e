"""The size that pictures are resized to, chosen by the size of the objects on them."""

from __future__ import annotations

from statistics import median

from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.transforms import resized_size
from sdpt_ext.models.glip.processing import ProcessorConfig

_WANTED_SIDE = 50.0
"""Pixels: an object of half as many covers three cells of the finest map, and is hard to tell from its neighbours."""
_LARGEST_FACTOR = 2.0
"""Time and memory grow with the square."""


def fitting_image_size(images: DetectionImages, config: ProcessorConfig) -> int:
    """A short side at which half of the objects are at least 50 pixels large, in multiples of the padding divisor.

    It is never below the model's own size, nor over twice as large, nor larger than the pictures are.

    Args:
        images: a training split.
        config: gives the model's own size.
    """
    sides = [side for index in range(len(images)) for side in _object_sides(images, index, config)]
    if not sides:
        return config.shortest_edge
    factor = min(_WANTED_SIDE / median(sides), _LARGEST_FACTOR)
    short_side = median(min(record["width"], record["height"]) for record in images.records)
    size = min(factor * config.shortest_edge, short_side)
    return max(config.shortest_edge, round(size / config.size_divisor) * config.size_divisor)


def _object_sides(images: DetectionImages, index: int, config: ProcessorConfig) -> list[float]:
    """Square roots of the boxes' areas at the model's own size."""
    width, height = images.records[index]["width"], images.records[index]["height"]
    scale = resized_size(width, height, config.shortest_edge, config.longest_edge)[0] / height
    return [scale * (item["bbox"][2] * item["bbox"][3]) ** 0.5 for item in images.annotations(index)]
