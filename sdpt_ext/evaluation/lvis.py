"""Average precision as LVIS defines it (Gupta et al., CVPR 2019), computed by faster-coco-eval."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdpt_ext.data.lvis import LvisDataset
from sdpt_ext.evaluation.coco import CocoEvaluator

_KEYS = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
    "APr": "APr",
    "APc": "APc",
    "APf": "APf",
}
"""Our names of the figures -> the library's."""


class LvisEvaluator(CocoEvaluator):
    """Counts on each image only classes that it was checked for, and there the 300 best detections.

    `results` also gives "APr", "APc" and "APf", of rare, common and frequent classes. A detection of a class that the
    image was not checked for does not count; where not all objects of a class have boxes, a detection beside them does
    not count either.

    Raises:
        ImportError: faster-coco-eval is not installed.
    """

    max_detections = 300

    def __init__(self, dataset: LvisDataset) -> None:
        super().__init__(dataset)
        self.content = dataset.content
        self._library = _faster_coco_eval()

    def _measure(self) -> tuple[dict[str, float], np.ndarray]:
        truth = self._library.COCO(self.content)
        found = truth.loadRes([dict(prediction) for prediction in self.predictions])
        evaluation = self._library.COCOeval_faster(truth, found, "bbox", lvis_style=True)
        evaluation.params.imgIds = sorted(self._image_ids)
        evaluation.params.catIds = list(self.dataset.category_ids)
        evaluation.params.maxDets = [self.max_detections]
        evaluation.run()
        figures = evaluation.stats_as_dict
        return {name: figures[key] for name, key in _KEYS.items()}, evaluation.eval["precision"]


def _faster_coco_eval() -> Any:
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ImportError(f'LVIS is evaluated by faster-coco-eval ({error}): pip install ".[lvis]"') from error
    return faster_coco_eval


__all__ = ["LvisEvaluator"]
