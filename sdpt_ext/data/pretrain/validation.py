"""The photographs of a split as a data set whose images are each asked for their own labelled names only."""

from __future__ import annotations

from pathlib import Path

from sdpt_ext.data.coco import DetectionDataset
from sdpt_ext.data.detection import DetectionItem


class LabelledPhotographs(DetectionDataset):
    """Photographs of many sources; each item's "caption_labels" are the classes that its source labels throughout.

    ``EvalCollator`` makes the caption of these alone, so that no detection is counted as wrong which nobody checked.

    Args:
        root: folder in COCO layout whose image records have "labelled_categories".
        split: "train" or "val".
    """

    def __init__(self, root: str | Path, split: str = "val") -> None:
        super().__init__(root, split, strict=True)

    def __getitem__(self, index: int) -> DetectionItem:
        labelled = sorted(self.records[index]["labelled_categories"])
        return {**super().__getitem__(index), "caption_labels": [self.label_of_category[number] for number in labelled]}
