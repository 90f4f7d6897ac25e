"""Where pre-training examples come from: generated scenes, and photographs of many small open sets."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sdpt_ext.data.coco import read_image
from sdpt_ext.data.pretrain.augmentation import flip, saturate, zoom_crop
from sdpt_ext.data.shapes.scenes import SceneOptions, draw_scene, random_object
from sdpt_ext.data.shapes.vocabulary import ObjectName
from sdpt_ext.models.glip.captions import clean_name


@dataclass
class Example:
    """A picture of the asked size and what is known of it.

    Attributes:
        boxes: (G, 4) COCO xywh in pixels.
        names: per box, every name that is true of it and may stand in the caption.
        negatives: names that are certainly true of nothing in the picture.
    """

    image: Image.Image
    boxes: np.ndarray
    names: list[frozenset[str]]
    negatives: Sequence[str]


class ExampleSource(Protocol):
    """Draws examples of (width, height) pixels."""

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Example: ...


def _said(name: ObjectName, says_colour: bool, says_texture: bool) -> ObjectName:
    return ObjectName(name.shape, name.colour if says_colour else None, name.texture if says_texture else None)


class ShapeScenes:
    """Generated scenes, whose objects are named by shape, colour and texture or a part of these.

    Half of the scenes name all objects alike ("red star. blue ring"), half name each in its own way; an object is then
    a positive of every name in the caption that is true of it.

    Args:
        other_names: names of real things, none of which is ever in a generated scene.
    """

    def __init__(self, other_names: Sequence[str] = (), options: SceneOptions | None = None) -> None:
        self.other_names = list(other_names)
        self.options = options or SceneOptions()

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Example:
        scene = draw_scene(size, random_object, self.options, rng)
        says = self._wordings(len(scene.names), rng)
        spoken = [_said(name, *say) for name, say in zip(scene.names, says, strict=True)]
        names = [frozenset(str(said) for said in set(spoken) if said.describes(name)) for name in scene.names]
        return Example(scene.image, scene.boxes, names, self._negatives(scene.names, rng))

    @staticmethod
    def _wordings(count: int, rng: np.random.Generator) -> list[tuple[bool, bool]]:
        wordings = [(False, False), (True, False), (False, True), (True, True)]
        drawn = rng.choice(4, size=count, p=[0.4, 0.3, 0.12, 0.18])
        if rng.random() < 0.5 and count:
            drawn[:] = drawn[0]
        return [wordings[index] for index in drawn]

    def _negatives(self, present: Sequence[ObjectName], rng: np.random.Generator) -> list[str]:
        """Near misses of the objects (one word exchanged) first, then unrelated names."""
        candidates = [random_object(rng) for _ in range(12)]
        for name in present:
            other = random_object(rng)
            candidates += [
                ObjectName(name.shape, other.colour, name.texture),
                ObjectName(other.shape, name.colour, name.texture),
                ObjectName(name.shape, name.colour, other.texture),
            ]
        says = self._wordings(len(candidates), rng)
        spoken = {_said(candidate, *say) for candidate, say in zip(candidates, says, strict=True)}
        absent = sorted(str(said) for said in spoken if not any(said.describes(name) for name in present))
        if self.other_names and rng.random() < 0.5:
            absent += [str(name) for name in rng.choice(self.other_names, size=8)]
        return absent


class Photographs:
    """Real pictures of a COCO-format folder whose image records say which categories are labelled throughout.

    Sources are drawn with the square root of their size, so that a large one does not drown the small ones.

    Raises:
        ValueError: an image record has no ``labelled_categories``.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.folder = Path(root) / split
        file = Path(root) / "annotations" / f"{split}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        self.category_names = {
            category["id"]: clean_name(category["name"]).strip() for category in content["categories"]
        }
        self.records: list[dict[str, Any]] = content["images"]
        for record in self.records:
            if "labelled_categories" not in record:
                raise ValueError(
                    f"{file}: image {record['file_name']} has no labelled_categories, so nothing is known of the "
                    "names that are absent from it; add the ids of the categories that its source labels"
                )
        self._annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            self._annotations[annotation["image_id"]].append(annotation)
        self._probabilities = _balance([record.get("source", "") for record in self.records])

    @property
    def names(self) -> list[str]:
        """All names, in the order of their ids."""
        return [name for _, name in sorted(self.category_names.items())]

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Example:
        record = self.records[int(np.searchsorted(self._probabilities, rng.random(), side="right"))]
        image, boxes, labels = self.load(record)
        image, boxes, visible = zoom_crop(image, boxes, size, rng)
        names = [self.category_names[label] for label in labels]
        kept = visible >= 0.3
        # A name whose only object is a cut-off sliver is neither there nor absent.
        unsure = {name for name, share in zip(names, visible, strict=True) if share > 0}
        negatives = [self.category_names[label] for label in record["labelled_categories"]]
        negatives = [name for name in negatives if name not in unsure]
        boxes, names = boxes[kept], [name for name, keep in zip(names, kept, strict=True) if keep]
        if rng.random() < 0.5 and not _depends_on_side(names + negatives):
            image, boxes = flip(image, boxes)
        return Example(saturate(image, rng), boxes, [frozenset([name]) for name in names], negatives)

    def load(self, record: dict[str, Any]) -> tuple[Image.Image, np.ndarray, list[int]]:
        """Picture, (G, 4) COCO xywh boxes and category ids of an image record; crowds are left out."""
        image = read_image(self.folder / record["file_name"])
        annotations = [item for item in self._annotations[record["id"]] if not item.get("iscrowd")]
        boxes = np.array([item["bbox"] for item in annotations], dtype=np.float32).reshape(-1, 4)
        return image, boxes, [item["category_id"] for item in annotations]


def _balance(sources: Sequence[str]) -> np.ndarray:
    """Cumulated probabilities of the images."""
    counts = Counter(sources)
    weights = np.array([counts[source] ** -0.5 for source in sources])
    return np.cumsum(weights / weights.sum())


def _depends_on_side(names: Sequence[str]) -> bool:
    return any(word in ("left", "right") for name in names for word in name.split())
