from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdpt_ext.data.coco import DetectionDataset
from sdpt_ext.data.shapes import ShapesDataset
from sdpt_ext.data.sources import DEFAULT_SOURCE, ODINW_VARIABLE, open_dataset
from tests.data import folders

DATA = Path(os.environ.get("SDPT_DATA", "../shared/data"))


def test_default_is_generated() -> None:
    assert isinstance(open_dataset(DEFAULT_SOURCE, "val"), ShapesDataset)


def test_folder_with_and_without_prefix(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content())
    for source in (str(tmp_path), f"coco:{tmp_path}"):
        assert len(open_dataset(source, "train")) == 3
    assert len(open_dataset(str(tmp_path), "train", shots=1)) == 1


def test_odinw_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write(tmp_path / "Aquarium" / "Aquarium Combined", folders.content(), layout="roboflow")
    folders.write(tmp_path / "Raccoon", folders.content(), layout="roboflow")
    monkeypatch.setenv(ODINW_VARIABLE, str(tmp_path))
    for name in ("Aquarium", "Raccoon"):
        assert isinstance(open_dataset(f"odinw:{name}", "train"), DetectionDataset)
    with pytest.raises(FileNotFoundError, match="Pistols is not a folder"):
        open_dataset("odinw:Pistols", "train")
    monkeypatch.delenv(ODINW_VARIABLE)
    with pytest.raises(FileNotFoundError, match=f"folder in \\${ODINW_VARIABLE}, which is not set"):
        open_dataset("odinw:Raccoon", "train")


@pytest.mark.parametrize("source", ["nowhere", "shape:night", "shapes:", ""])
def test_unknown_source_names_the_choices(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor one of shapes:TASK"):
        open_dataset(source, "train")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the data sets in {DATA} (set SDPT_DATA)")
@pytest.mark.parametrize(
    ("name", "classes", "images"),
    [("raccoon", 1, (155, 19, 20)), ("bccd", 3, (205, 87, 72)), ("aquarium", 7, (224, 64, 63))],
)
def test_real_sets_open_whole(name: str, classes: int, images: tuple[int, int, int]) -> None:
    for split, count in zip(("train", "val", "test"), images, strict=True):
        dataset = open_dataset(str(DATA / name), split, strict=True)
        assert len(dataset) == count
        assert len(dataset.class_names) == classes
        assert dataset[0]["image"].size == (dataset.records[0]["width"], dataset.records[0]["height"])
