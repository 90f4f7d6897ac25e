"""Lists of data set items to model inputs, for training and for evaluation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from sdpt_ext.models.glip.processing import GlipProcessor


class TrainCollator:
    """Batches with labels; with ``augment``, each image gets a random training scale and is mirrored half of the time.

    Args:
        processor: gives sizes, training scales and tokens.
        class_names: the classes of the data set, in the order of their labels; they make one caption.
        augment: whether to draw scale and mirroring.
        seed: of the draws for items without a "seed" of their own.

    Raises:
        ValueError: the caption is too long for the model.
    """

    def __init__(
        self, processor: GlipProcessor, class_names: Sequence[str], augment: bool = True, seed: int = 0
    ) -> None:
        self.processor = processor
        self.class_names = list(class_names)
        self.augment = augment
        self._random = random.Random(seed)
        processor(text=self.class_names)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the model takes, and the labels, of some items."""
        edges, flips = zip(*(self._draw(item) for item in items), strict=True)
        batch = self.processor(
            images=[item["image"] for item in items],
            text=self.class_names,
            annotations=items,
            shortest_edges=edges,
            flips=flips,
        )
        return {key: batch[key] for key in (*self.processor.model_input_names, "labels")}

    def _draw(self, item: Mapping[str, Any]) -> tuple[int, bool]:
        config = self.processor.config
        if not self.augment:
            return config.shortest_edge, False
        generator = random.Random(item["seed"]) if "seed" in item else self._random
        return generator.choice(config.train_shortest_edges), generator.random() < 0.5


class EvalCollator:
    """Batches at test size, with what is needed to bring detections back to the original images.

    An item may carry "caption_labels", the labels that stand in its own caption; detections still have the labels of
    the data set. Without it, all classes make the caption.

    Raises:
        ValueError: the caption is too long for the model.
    """

    def __init__(self, processor: GlipProcessor, class_names: Sequence[str]) -> None:
        self.processor = processor
        self.class_names = list(class_names)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The processor's output for some items, and "image_id"."""
        everything = range(1, len(self.class_names) + 1)
        labels = [list(item.get("caption_labels", everything)) for item in items]
        names = [[self.class_names[label - 1] for label in group] for group in labels]
        batch = self.processor(images=[item["image"] for item in items], text=names)
        tokens = [
            {group[position - 1]: places for position, places in found.items()}
            for group, found in zip(labels, batch["label_to_tokens"], strict=True)
        ]
        return {**batch, "label_to_tokens": tokens, "image_id": [item["image_id"] for item in items]}


__all__ = ["EvalCollator", "TrainCollator"]
