"""Images with boxes, whatever they come from: the interface that training, evaluation and prediction use."""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NotRequired, Self, TypedDict

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset


class DetectionItem(TypedDict):
    """One image; boxes are COCO xywh in its own pixels, labels 1-based ranks of the category ids.

    "caption_labels" is there if only some of the classes may be asked for on this image, "negative_labels" if training
    may take only some of the others for absent.
    """

    image_id: int
    image: Image.Image
    boxes: Tensor
    class_labels: Tensor
    iscrowd: Tensor
    caption_labels: NotRequired[list[int]]
    negative_labels: NotRequired[list[int]]


class DetectionImages(Dataset, ABC):
    """A map-style data set of images with boxes.

    Args:
        content: COCO instances: "images", "annotations" and "categories". Labels are the 1-based ranks of the
            category ids in ascending order.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        # pycocotools takes an annotation of id 0 for a missed one.
        annotations = [{**item, "id": number} for number, item in enumerate(content["annotations"], start=1)]
        self.content = {**content, "categories": categories, "annotations": annotations}
        self.records: list[dict[str, Any]] = content["images"]
        self.class_names: list[str] = [category["name"] for category in categories]
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.label_of_category = {number: label for label, number in enumerate(self.category_ids, start=1)}
        self._annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in annotations:
            self._annotations[annotation["image_id"]].append(annotation)
        self._coco: COCO | None = None

    @abstractmethod
    def load_image(self, index: int) -> Image.Image:
        """The RGB picture of ``records[index]``."""

    @property
    def coco(self) -> COCO:
        """The ground truth for pycocotools."""
        if self._coco is None:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                self._coco = COCO()
                self._coco.dataset = self.content
                self._coco.createIndex()
        return self._coco

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> DetectionItem:
        annotations = self.annotations(index)
        return {
            "image_id": self.records[index]["id"],
            "image": self.load_image(index),
            "boxes": torch.tensor([item["bbox"] for item in annotations], dtype=torch.float32).reshape(-1, 4),
            "class_labels": torch.tensor(self.labels(index), dtype=torch.int64),
            "iscrowd": torch.tensor([item.get("iscrowd", 0) for item in annotations], dtype=torch.int64),
        }

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """COCO annotations of an image."""
        return self._annotations.get(self.records[index]["id"], [])

    def labels(self, index: int) -> list[int]:
        """1-based labels of an image's boxes, without loading the picture."""
        return [self.label_of_category[item["category_id"]] for item in self.annotations(index)]

    def select(self, indices: Sequence[int]) -> Self:
        """The same data set with these images only, in this order."""
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__)
        records = [self.records[index] for index in indices]
        kept = {record["id"] for record in records}
        annotations = [item for item in self.content["annotations"] if item["image_id"] in kept]
        DetectionImages.__init__(chosen, {**self.content, "images": records, "annotations": annotations})
        return chosen


__all__ = ["DetectionImages", "DetectionItem"]
