"""Lists of data set items to model inputs, for training and for evaluation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdpt_ext.data.class_groups import class_groups, draw_labels
from sdpt_ext.models.glip.processing import GlipProcessor


class TrainCollator:
    """Batches with labels; with ``augment``, each image gets a random training scale and is mirrored half of the time.

    All classes make the caption where they fit. Else, and for items with "negative_labels", each image's caption holds
    the classes on it and others that are drawn, as many as fit.

    Args:
        processor: gives sizes, training scales and tokens.
        class_names: the classes of the data set, in the order of their labels.
        augment: whether to draw scale and mirroring.
        seed: of the draws for items without a "seed" of their own.
        classes_per_caption: largest number of classes in a caption; None for as many as fit.

    Raises:
        ValueError: a name is too long for the model, or so many of them are.
    """

    def __init__(
        self,
        processor: GlipProcessor,
        class_names: Sequence[str],
        augment: bool = True,
        seed: int = 0,
        classes_per_caption: int | None = None,
    ) -> None:
        self.processor = processor
        self.class_names = list(class_names)
        self.augment = augment
        self.classes_per_caption = classes_per_caption
        self._everything = range(1, len(self.class_names) + 1)
        self._fit_together = len(class_groups(processor, self.class_names, classes_per_caption)) == 1
        self._random = random.Random(seed)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the model takes, and the labels, of some items."""
        generators = [random.Random(item["seed"]) if "seed" in item else self._random for item in items]
        edges, flips = zip(*(self._draw(generator) for generator in generators), strict=True)
        asked = [self._asked(item, generator) for item, generator in zip(items, generators, strict=True)]
        batch = self.processor(
            images=[item["image"] for item in items],
            text=_names(self.class_names, asked),
            annotations=[_within_caption(item, labels) for item, labels in zip(items, asked, strict=True)],
            shortest_edges=edges,
            flips=flips,
        )
        return {key: batch[key] for key in (*self.processor.model_input_names, "labels")}

    def _draw(self, generator: random.Random) -> tuple[int, bool]:
        config = self.processor.config
        if not self.augment:
            return config.shortest_edge, False
        return generator.choice(config.train_shortest_edges), generator.random() < 0.5

    def _asked(self, item: Mapping[str, Any], generator: random.Random) -> Sequence[int]:
        """The labels in an image's caption, in their order there."""
        if self._fit_together and "negative_labels" not in item:
            return self._everything
        present = torch.as_tensor(item["class_labels"]).tolist()
        absent = item.get("negative_labels", self._everything)
        return draw_labels(self.processor, self.class_names, present, absent, generator, self.classes_per_caption)


class EvalCollator:
    """Batches at test size, with what is needed to bring detections back to the original images.

    Each batch holds one caption per group of classes, see ``class_groups``. Where items carry "caption_labels", the
    labels that stand in their own caption, there is one caption for each image; detections still have the labels of the
    data set.

    Args:
        classes_per_caption: as ``size`` of ``class_groups``.

    Raises:
        ValueError: a name is too long for the model, or so many of them are.
    """

    def __init__(
        self, processor: GlipProcessor, class_names: Sequence[str], classes_per_caption: int | None = None
    ) -> None:
        self.processor = processor
        self.class_names = list(class_names)
        self.groups = class_groups(processor, self.class_names, classes_per_caption)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The processor's output for the images, "image_id", and "captions": its outputs for texts of all images."""
        images = self.processor(images=[item["image"] for item in items])
        captions = [self._caption(asked) for asked in self._asked(items)]
        return {**images, "captions": captions, "image_id": [item["image_id"] for item in items]}

    def _asked(self, items: Sequence[Mapping[str, Any]]) -> list[list[Sequence[int]]]:
        """Per caption, the labels that each image is asked for."""
        if any("caption_labels" in item for item in items):
            everything = range(1, len(self.class_names) + 1)
            return [[item.get("caption_labels", everything) for item in items]]
        return [[group] * len(items) for group in self.groups]

    def _caption(self, asked: Sequence[Sequence[int]]) -> dict[str, Any]:
        text = self.processor(text=_names(self.class_names, asked))
        tokens = [
            {labels[position - 1]: places for position, places in found.items()}
            for labels, found in zip(asked, text["label_to_tokens"], strict=True)
        ]
        return {**text, "label_to_tokens": tokens}


def _names(class_names: Sequence[str], asked: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[class_names[label - 1] for label in labels] for labels in asked]


def _within_caption(item: Mapping[str, Any], labels: Sequence[int]) -> dict[str, Any]:
    """The boxes whose classes stand in a caption, with the classes' positions there."""
    positions = {label: position for position, label in enumerate(labels, start=1)}
    classes = torch.as_tensor(item["class_labels"]).tolist()
    kept = [index for index, label in enumerate(classes) if label in positions]
    fields = {key: torch.as_tensor(item[key])[kept] for key in ("boxes", "iscrowd") if key in item}
    return {**fields, "class_labels": [positions[classes[index]] for index in kept]}


__all__ = ["EvalCollator", "TrainCollator"]
