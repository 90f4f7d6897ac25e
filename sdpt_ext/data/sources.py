"""Data sets by name: what users write after --data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sdpt_ext.data.coco import DetectionDataset
from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.few_shot import few_shot
from sdpt_ext.data.lvis import LvisDataset
from sdpt_ext.data.shapes import ShapesDataset

DEFAULT_SOURCE = "shapes:novel_pair"
ODINW_VARIABLE = "SDPT_ODINW"
"""Environment variable with the folder that holds the ODinW data sets."""


def open_dataset(
    source: str, split: str, shots: int | None = None, seed: int = 0, strict: bool | None = None
) -> DetectionImages:
    """One split of a data set.

    Args:
        source: a folder in COCO, Roboflow or ODinW layout; "coco:DIR", the same; "shapes:TASK", generated;
            "lvis:DIR", see ``LvisDataset``; "odinw:NAME", the folder NAME under $SDPT_ODINW.
        split: "train", "val" or "test".
        shots: keep this many images per class, drawn by ``seed``.
        strict: whether damaged images are errors, see ``DetectionDataset``.

    Raises:
        FileNotFoundError, ValueError: naming the source, file and fix.
    """
    kind, _, name = source.partition(":")
    openers: dict[str, Callable[[], DetectionImages]] = {
        "shapes": lambda: ShapesDataset(name, split),
        "coco": lambda: DetectionDataset(name, split, strict),
        "lvis": lambda: LvisDataset(name, split, strict),
        "odinw": lambda: DetectionDataset(_odinw_folder(name), split, strict),
    }
    if name and kind in openers and not Path(source).exists():
        dataset = openers[kind]()
    elif source and Path(source).is_dir():
        dataset = DetectionDataset(source, split, strict)
    else:
        raise FileNotFoundError(
            f"--data {source!r} is neither a folder nor one of shapes:TASK, coco:DIR, lvis:DIR, odinw:NAME"
        )
    return dataset if shots is None else few_shot(dataset, shots, seed)


def _odinw_folder(name: str) -> Path:
    root = os.environ.get(ODINW_VARIABLE)
    if not root:
        raise FileNotFoundError(
            f"odinw:{name} is looked for under the folder in ${ODINW_VARIABLE}, which is not set; "
            f"set it to where the ODinW data sets are, for example {ODINW_VARIABLE}=~/odinw"
        )
    folder = Path(root).expanduser() / name
    # Some of the archives hold one more folder, as Aquarium/"Aquarium Combined.v2-raw-1024.coco".
    inner = [path for path in folder.glob("*") if (path / "train").is_dir()] if folder.is_dir() else []
    return folder if (folder / "train").is_dir() or len(inner) != 1 else inner[0]


__all__ = ["DEFAULT_SOURCE", "open_dataset"]
