"""The size of the pictures follows the size of the objects."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.image_size import fitting_image_size
from sdpt_ext.models.glip.processing import NANO_CONFIG


class BlankImages(DetectionImages):
    """Two pictures of one size, whose boxes have the sides given."""

    def __init__(self, size: tuple[int, int], *sides: float) -> None:
        images = [{"id": number, "width": size[0], "height": size[1]} for number in (1, 2)]
        annotations: list[dict[str, Any]] = [
            {"id": number, "image_id": 1 + number % 2, "category_id": 1, "bbox": [0, 0, side, side]}
            for number, side in enumerate(sides)
        ]
        super().__init__({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "fish"}]})

    def load_image(self, index: int) -> Image.Image:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (BlankImages((1024, 768), 150.0), 256),  # 50 pixels at the model's own size
        (BlankImages((1024, 768), 120.0), 320),
        (BlankImages((768, 1024), 120.0), 320),
        (BlankImages((1024, 768), 30.0, 30.0, 500.0), 512),  # no more than twice as large
        (BlankImages((400, 300), 30.0), 288),  # no larger than the pictures are
        (BlankImages((200, 150), 20.0), 256),
        (BlankImages((1024, 768)), 256),
    ],
)
def test_size_gives_objects_fifty_pixels(images: BlankImages, expected: int) -> None:
    assert fitting_image_size(images, NANO_CONFIG) == expected


def test_all_lengths_of_a_processor_change_in_proportion() -> None:
    config = NANO_CONFIG.with_image_size(384)
    assert (config.shortest_edge, config.longest_edge) == (384, 576)
    assert config.train_shortest_edges == (288, 336, 384, 432, 480)
    assert config.with_image_size(256) == NANO_CONFIG
