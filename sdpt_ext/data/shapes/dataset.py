"""A generated detection task as a data set."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from PIL import Image

from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.shapes.scenes import Scene, draw_scene
from sdpt_ext.data.shapes.tasks import TASKS, Task

SPLIT_SIZES = {"train": 240, "val": 60, "test": 120}
IMAGE_SIZE = (256, 256)


class ShapesDataset(DetectionImages):
    """Scenes of a task, drawn when the data set is made and the same ones every time.

    Args:
        task: one of ``TASKS``.
        split: "train", "val" or "test".
        seed: another seed gives other scenes of the same kind.
        size: number of scenes; the default is ``SPLIT_SIZES``.

    Raises:
        ValueError: there is no such task or split.
    """

    def __init__(self, task: str, split: str, seed: int = 0, size: int | None = None) -> None:
        if task not in TASKS:
            known = "".join(f"\n  shapes:{name}  {known.description}" for name, known in TASKS.items())
            raise ValueError(f"there is no generated task {task!r}; known are{known}")
        if split not in SPLIT_SIZES:
            raise ValueError(f"generated tasks have the splits {', '.join(SPLIT_SIZES)}, not {split!r}")
        self.task = TASKS[task]
        key = zlib.crc32(f"{task}/{split}".encode())
        count = SPLIT_SIZES[split] if size is None else size
        scenes = [_draw(self.task, np.random.default_rng([seed, key, index])) for index in range(count)]
        self._images = {index: scene.image for index, scene in enumerate(scenes, start=1)}
        super().__init__(_coco_content(self.task, scenes))

    def load_image(self, index: int) -> Image.Image:
        return self._images[self.records[index]["id"]]


def _draw(task: Task, rng: np.random.Generator) -> Scene:
    return draw_scene(IMAGE_SIZE, task.choose, task.options, rng)


def _coco_content(task: Task, scenes: list[Scene]) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": f"{number:05d}.png", "width": scene.image.width, "height": scene.image.height}
        for number, scene in enumerate(scenes, start=1)
    ]
    annotations = [
        {"image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, scene in enumerate(scenes, start=1)
        for name, box in zip(scene.names, scene.boxes.tolist(), strict=True)
        if (label := task.label_of(name)) is not None
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(task.classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
