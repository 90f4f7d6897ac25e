"""Average precision as the COCO benchmark defines it (Lin et al., ECCV 2014), computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from sdpt_ext.data.atomic import write_text
from sdpt_ext.data.transforms import corners_to_coco
from sdpt_ext.evaluation.sharing import gathered

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
NO_GROUND_TRUTH = -1.0
LISTED_CLASSES = 100
"""Tables for the terminal leave more classes than this to metrics.json."""


class CocoGroundTruth(Protocol):
    """What an evaluation needs of a data set."""

    @property
    def coco(self) -> COCO: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def category_ids(self) -> Sequence[int]: ...


class CocoEvaluator:
    """Collects detections image by image and compares them with a data set's boxes.

    Only images that were passed to `update` count; one without detections counts as an image where all
    objects were missed.

    Attributes:
        predictions: detections so far in COCO's result format (xywh in original pixels, the data set's ids).
        max_detections: so many of an image count, the best; None for as many as the detector gives.
    """

    max_detections: int | None = None

    def __init__(self, dataset: CocoGroundTruth) -> None:
        self.dataset = dataset
        self.predictions: list[dict[str, Any]] = []
        self._image_ids: set[int] = set()

    def update(self, image_ids: Sequence[int], detections: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the detections of some images.

        Args:
            image_ids: ids in the data set's annotation file.
            detections: per image "scores" (D,), "labels" (D,) 1-based, "boxes" (D, 4) xyxy in original pixels,
                inclusive corners.

        Raises:
            ValueError: an id is unknown or was added before, or a label is none of the data set's classes.
        """
        for image_id, found in zip(image_ids, detections, strict=True):
            if image_id in self._image_ids or image_id not in self.dataset.coco.imgs:
                state = "was added before" if image_id in self._image_ids else "is not in the data set"
                raise ValueError(f"image id {image_id} {state}")
            self._image_ids.add(image_id)
            best = found["scores"].argsort(descending=True, stable=True)[: self.max_detections]
            counted = {key: values[best] for key, values in found.items()}
            self.predictions += _coco_results(image_id, counted, self.dataset.category_ids)

    def gather(self) -> None:
        """Give every process the images of all, in the data set's order; all processes must call this."""
        image_ids, predictions = zip(*gathered((self._image_ids, self.predictions)), strict=True)
        place = {image_id: number for number, image_id in enumerate(self.dataset.coco.imgs)}
        self._image_ids = set().union(*image_ids)
        self.predictions = sorted(chain(*predictions), key=lambda prediction: place[prediction["image_id"]])

    def results(self) -> dict[str, Any]:
        """Average precision over the images added so far.

        Returns:
            "AP", "AP50", "AP75", "APs", "APm", "APl" and "per_class" (AP by class name) as fractions of 1; -1 where
            there is no ground truth, as pycocotools has it.

        Raises:
            ValueError: no image was added.
        """
        if not self._image_ids:
            raise ValueError("nothing to evaluate: no image was added")
        summary, precision = self._measure()
        return {**summary, "per_class": _per_class(precision, self.dataset.class_names)}

    def _measure(self) -> tuple[dict[str, float], np.ndarray]:
        """The summary, and precision by (IoU threshold, recall, class, area, limit on detections)."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(self.dataset.coco, _load_results(self.dataset.coco, self.predictions), "bbox")
            evaluation.params.imgIds = sorted(self._image_ids)
            evaluation.params.catIds = list(self.dataset.category_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        summary = dict(zip(SUMMARY, evaluation.stats[: len(SUMMARY)].tolist(), strict=True))
        return summary, evaluation.eval["precision"]


def _coco_results(image_id: int, found: Mapping[str, Tensor], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    if labels and not 1 <= min(labels) <= max(labels) <= len(category_ids):
        raise ValueError(f"labels {min(labels)}..{max(labels)} found for a data set of {len(category_ids)} classes")
    boxes = corners_to_coco(found["boxes"].double()).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, score, box in zip(labels, scores, boxes, strict=True)
    ]


def _load_results(ground_truth: COCO, predictions: Sequence[Mapping[str, Any]]) -> COCO:
    if predictions:
        return ground_truth.loadRes([dict(prediction) for prediction in predictions])
    empty = COCO()
    empty.dataset = {**ground_truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _per_class(precision: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    by_name = {}
    for index, name in enumerate(class_names):
        of_class = precision[:, :, index, 0, -1]  # all areas, the largest limit
        valid = of_class[of_class > NO_GROUND_TRUTH]
        by_name[name] = float(valid.mean()) if valid.size else NO_GROUND_TRUTH
    return by_name


def save_predictions(path: str | os.PathLike[str], predictions: Sequence[Mapping[str, Any]]) -> None:
    """Write COCO results to a JSON file, one detection per line; raises OSError naming the file."""
    lines = ",\n".join(json.dumps(prediction) for prediction in predictions)
    write_text(path, f"[\n{lines}\n]\n" if lines else "[]\n")


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """A text table of `CocoEvaluator.results()`, classes last unless they are many; "-" without ground truth."""
    rows = [(key, value) for key, value in metrics.items() if key != "per_class"]
    classes = list(metrics["per_class"].items()) if len(metrics["per_class"]) <= LISTED_CLASSES else []
    width = max(len(name) for name, _ in rows + classes)
    rule = "-" * (width + 8)
    lines = [
        f"{name:<{width}}  {'-' if value == NO_GROUND_TRUTH else f'{value:.3f}':>6}" for name, value in rows + classes
    ]
    return "\n".join([rule, *lines[: len(rows)], rule, *lines[len(rows) :], rule])


__all__ = ["LISTED_CLASSES", "NO_GROUND_TRUTH", "SUMMARY", "CocoEvaluator", "CocoGroundTruth", "metrics_table"]
__all__ += ["save_predictions"]
