"""Data sets of image files with a COCO annotation file, in the usual folder layouts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.validation import read_annotations

logger = logging.getLogger(__name__)

_LAYOUTS = (
    ("{split}", "annotations/{split}.json"),
    ("{split}", "{split}/annotations_without_background.json"),
    ("{split}", "{split}/_annotations.coco.json"),
    ("{split}2017", "annotations/instances_{split}2017.json"),
)
"""(image folder, annotation file) under the root: COCO-like, ODinW, Roboflow, COCO 2017."""
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_OTHER_NAMES = {"val": ("val", "valid")}
_MAX_CHECKED = 20_000
"""Larger data sets are not opened file by file beforehand; a bad file is then an error when it is read."""


@dataclass(frozen=True)
class SplitFiles:
    """Where the files of one split are."""

    images: Path
    annotations: Path


def find_split(root: str | os.PathLike[str], split: str) -> SplitFiles:
    """The files of a split, in whichever layout the folder has.

    Raises:
        FileNotFoundError: the folder is missing or has no such split; the message lists the splits that it has.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; a data set is a folder with train/, val/ and test/ images")
    found = _split_files(folder, split)
    if found is None:
        existing = [name for name in ("train", "val", "test") if _split_files(folder, name)]
        has = f"it has {', '.join(existing)}" if existing else "it has no split in a known layout"
        raise FileNotFoundError(
            f"{folder} has no split {split!r}: {has}. Expected {split}/ with images and annotations/{split}.json, "
            f"or {split}/_annotations.coco.json as Roboflow exports it"
        )
    return found


def _split_files(folder: Path, split: str) -> SplitFiles | None:
    candidates = [
        SplitFiles(folder / images.format(split=name), folder / annotations.format(split=name))
        for images, annotations in _LAYOUTS
        for name in _OTHER_NAMES.get(split, (split,))
    ]
    if split == "test":
        # COCO keeps the boxes of its test images to itself; results are reported on val.
        candidates.append(SplitFiles(folder / "val2017", folder / "annotations" / "instances_val2017.json"))
    return next((files for files in candidates if files.annotations.is_file()), None)


class DetectionDataset(DetectionImages):
    """One split of a COCO-format data set.

    Args:
        root: folder of the data set.
        split: "train", "val" or "test".
        strict: whether a missing or damaged image is an error; else it is left out, and the number is told in a
            warning. By default training goes on without such images and evaluation does not.

    Raises:
        FileNotFoundError, ValueError: naming the file, the value and the fix.
    """

    def __init__(self, root: str | os.PathLike[str], split: str, strict: bool | None = None) -> None:
        files = self._find(root, split)
        content = self._read(files)
        self.image_folder = files.images
        strict = split != "train" if strict is None else strict
        super().__init__(_with_good_images(content, files, strict))

    @staticmethod
    def _find(root: str | os.PathLike[str], split: str) -> SplitFiles:
        return find_split(root, split)

    @staticmethod
    def _read(files: SplitFiles) -> dict[str, Any]:
        return read_annotations(files.annotations)

    def load_image(self, index: int) -> Image.Image:
        record = self.records[index]
        return read_image(self.image_folder / record["file_name"], (record["width"], record["height"]))


def read_image(file: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """An RGB picture; ``size`` is the (width, height) that the annotations give.

    Raises:
        OSError: naming the file, when it is missing, truncated, no picture or of another size.
    """
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"image {file} does not exist; add it or remove its record from the JSON") from None
    except OSError as error:
        raise OSError(f"image {file} can't be read ({error}); replace it or remove its record from the JSON") from error
    _check_size(file, image.size, size)
    return image


def _check_size(file: Path, actual: tuple[int, int], expected: tuple[int, int] | None) -> None:
    if expected is not None and actual != tuple(expected):
        raise OSError(
            f"image {file} has {actual[0]} x {actual[1]} pixels but its record says {expected[0]} x {expected[1]}, so "
            "its boxes are in other pixels; correct width and height with the boxes, or replace the image"
        )


def _with_good_images(content: dict[str, Any], files: SplitFiles, strict: bool) -> dict[str, Any]:
    problems = {
        record["id"]: problem for record in content["images"] if (problem := _image_problem(record, content, files))
    }
    if problems and strict:
        raise next(iter(problems.values()))
    if problems and len(problems) == len(content["images"]):
        raise OSError(
            f"{files.annotations}: none of its {len(problems)} images can be used; the first: "
            f"{next(iter(problems.values()))}"
        )
    if problems:
        logger.warning(
            "%s: %d of %d images left out; the first: %s",
            files.annotations,
            len(problems),
            len(content["images"]),
            next(iter(problems.values())),
        )
    images = [record for record in content["images"] if record["id"] not in problems]
    annotations = [item for item in content["annotations"] if item["image_id"] not in problems]
    if not annotations:
        raise ValueError(f"{files.annotations} has no box on any usable image: there is nothing to learn or to score")
    return {**content, "images": images, "annotations": annotations}


def _image_problem(record: Mapping[str, Any], content: Mapping[str, Any], files: SplitFiles) -> OSError | None:
    file = files.images / record["file_name"]
    try:
        if len(content["images"]) > _MAX_CHECKED:
            file.stat()
        else:
            _check_image(file, (record["width"], record["height"]))
    except OSError as error:
        return error
    return None


def _check_image(file: Path, size: tuple[int, int]) -> None:
    """Cheap check of header and end mark; the whole picture is read only if the mark is not there."""
    try:
        with Image.open(file) as opened:
            actual, mark = opened.size, _END_MARKS.get(str(opened.format))
    except OSError:
        mark = None
    if mark is not None and _ends_with(file, mark):
        _check_size(file, actual, size)
    else:
        read_image(file, size)


def _ends_with(file: Path, mark: bytes) -> bool:
    with file.open("rb") as opened:
        opened.seek(-len(mark), os.SEEK_END)
        return opened.read() == mark


__all__ = ["DetectionDataset", "SplitFiles", "find_split", "read_image"]
