"""LVIS (Gupta et al., CVPR 2019): a thousand classes, of which each image was checked for some.

What an image is known to show has boxes, what it is known not to show stands in its "neg_category_ids". Of every other
class nothing is known, so that such a class must be neither taught as absent nor counted as a false detection.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpt_ext.data.coco import DetectionDataset, SplitFiles
from sdpt_ext.data.detection import DetectionItem
from sdpt_ext.data.validation import check_annotations, read_json

FREQUENCIES = ("r", "c", "f")
"""Rare, common and frequent classes: on fewer than 10, fewer than 100 or more training images."""
_EVALUATION = ("lvis_v1_minival*.json", "lvis_v1_val.json", "lvis_v0.5_val.json")
_ANNOTATIONS = {
    "train": ("lvis_v1_train.json", "lvis_v0.5_train.json"),
    "val": _EVALUATION,
    # The boxes of LVIS's test images are not public.
    "test": _EVALUATION,
}
_IMAGE_FOLDERS = (".", "images")
_COCO_FOLDERS = ("train2017", "val2017")
_COCO_NAME_LENGTH = len("000000391895.jpg")


class LvisDataset(DetectionDataset):
    """One split of LVIS, version 1 or 0.5.

    Items carry "negative_labels": the classes that are known to be absent. Images of which nothing is known are left
    out.

    Args:
        root: folder with annotations/lvis_v1_train.json and lvis_v1_val.json or lvis_v1_minival*.json (or those of
            v0.5), and COCO's images in train2017/ and val2017/, or in these below images/.
        split: "train"; "val" and "test" are both minival if it is there, else val.
        strict: see ``DetectionDataset``.

    Raises:
        FileNotFoundError, ValueError: naming the file, the value and the fix.
    """

    def __getitem__(self, index: int) -> DetectionItem:
        absent = [self.label_of_category[number] for number in self.records[index]["neg_category_ids"]]
        return {**super().__getitem__(index), "negative_labels": absent}

    @staticmethod
    def _find(root: str | os.PathLike[str], split: str) -> SplitFiles:
        folder = Path(root)
        patterns = _ANNOTATIONS.get(split, (f"lvis_v1_{split}.json",))
        found = [file for pattern in patterns for file in sorted((folder / "annotations").glob(pattern))]
        if not found:
            there = ", ".join(sorted(file.name for file in folder.glob("annotations/*.json"))) or "no .json file"
            raise FileNotFoundError(
                f"{folder / 'annotations'} has none of {', '.join(patterns)} for the split {split!r}: it has {there}; "
                "download the annotations from lvisdataset.org"
            )
        return SplitFiles(folder, found[0])

    @staticmethod
    def _read(files: SplitFiles) -> dict[str, Any]:
        content = read_json(files.annotations)
        named = [{**image, "file_name": _file_name(image, files)} for image in content["images"]]
        content = check_annotations({**content, "images": named}, files.annotations)
        _check_federation(content, files.annotations)
        shown = {annotation["image_id"] for annotation in content["annotations"]}
        known = [image for image in content["images"] if image["id"] in shown or image["neg_category_ids"]]
        return {**content, "images": known}


def _file_name(image: Mapping[str, Any], files: SplitFiles) -> str:
    """The image's file relative to the data set's folder; the likeliest one if there is none."""
    names = list(_possible_names(image))
    if not names:
        raise ValueError(
            f"{files.annotations}: image {image.get('id')} has neither file_name nor coco_url; give it one of them"
        )
    paths = [os.path.normpath(f"{folder}/{name}") for name in names for folder in _IMAGE_FOLDERS]
    return next((path for path in paths if (files.images / path).is_file()), paths[0])


def _possible_names(image: Mapping[str, Any]) -> Iterator[str]:
    if image.get("coco_url"):
        yield "/".join(image["coco_url"].split("/")[-2:])
    if image.get("file_name"):
        yield image["file_name"]
        # Version 0.5 names some files as COCO did in 2014, COCO_train2014_000000391895.jpg.
        yield from (f"{folder}/{image['file_name'][-_COCO_NAME_LENGTH:]}" for folder in _COCO_FOLDERS)


def _check_federation(content: Mapping[str, Any], file: Path) -> None:
    category_ids = {category["id"] for category in content["categories"]}
    for category in content["categories"]:
        if category.get("frequency") not in FREQUENCIES:
            raise ValueError(
                f"{file}: category {category['name']!r} has frequency {json.dumps(category.get('frequency'))}; LVIS "
                f"files give one of {', '.join(FREQUENCIES)} (a COCO file is opened as coco:DIR)"
            )
    for image in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            _check_categories_of(image, key, category_ids, file)


def _check_categories_of(image: Mapping[str, Any], key: str, category_ids: set[Any], file: Path) -> None:
    if not isinstance(image.get(key), list):
        raise ValueError(
            f"{file}: image {image['id']} has no list {key}, without which nobody can tell what the image does not "
            "show; add it (a COCO file is opened as coco:DIR)"
        )
    unknown = [number for number in image[key] if number not in category_ids]
    if unknown:
        raise ValueError(
            f"{file}: {key} of image {image['id']} holds {unknown[0]!r}, which is no category of the file; add it to "
            "'categories' or remove it"
        )


__all__ = ["FREQUENCIES", "LvisDataset"]
