from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdpt_ext.data.collate import TrainCollator
from sdpt_ext.data.lvis import LvisDataset
from sdpt_ext.data.sources import open_dataset
from sdpt_ext.models.glip.processing import GlipProcessor
from tests.data import folders


def test_what_is_known_of_the_images(tmp_path: Path) -> None:
    folders.write_lvis(tmp_path, folders.lvis_content())
    dataset = open_dataset(f"lvis:{tmp_path}", "train", strict=True)
    assert isinstance(dataset, LvisDataset)
    assert [record["id"] for record in dataset.records] == [1, 2], "nothing can be learnt from the third"
    assert dataset.class_names == ["star", "ring", "gear_(wheel)", "fire_engine"]
    item = dataset[0]
    assert item["class_labels"].tolist() == [1, 2] and item["negative_labels"] == [3]
    assert dataset.select([1])[0]["negative_labels"] == [3]


def test_nothing_unknown_is_taught_as_absent(tmp_path: Path) -> None:
    folders.write_lvis(tmp_path, folders.lvis_content())
    dataset, processor = LvisDataset(tmp_path, "train"), GlipProcessor.nano()
    collator = TrainCollator(processor, dataset.class_names, seed=random.randrange(1000))
    batch = collator([dataset[0], dataset[1]])
    names = [processor.tokenizer.decode(ids, skip_special_tokens=True).split(". ") for ids in batch["input_ids"]]
    assert [{name.strip() for name in group} for group in names] == [{"star", "ring", "gear"}, {"star", "gear"}]


@pytest.mark.parametrize(
    ("folder", "changes"),
    [
        ("images/train2017", {}),
        ("val2017", {"coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg"}),
        ("train2017", {"coco_url": None, "file_name": "000000000001.jpg"}),
        ("train2017", {"coco_url": None, "file_name": "COCO_val2014_000000000001.jpg"}),
        ("images", {"coco_url": None, "file_name": "000000000001.jpg"}),
        ("val2017", {"coco_url": None, "file_name": "val2017/000000000001.jpg"}),
    ],
)
def test_where_the_images_may_be(folder: str, changes: dict[str, Any], tmp_path: Path) -> None:
    content = folders.lvis_content()
    content["images"], content["annotations"] = content["images"][:1], content["annotations"][:2]
    content["images"][0] |= changes
    folders.write_lvis(tmp_path, content, images=folder)
    assert LvisDataset(tmp_path, "train", strict=True)[0]["image"].size == (40, 30)


def test_splits(tmp_path: Path) -> None:
    for name in ("lvis_v0.5_train", "lvis_v0.5_val", "lvis_v1_train"):
        folders.write_lvis(tmp_path, folders.lvis_content(), name)
    assert LvisDataset._find(tmp_path, "train").annotations.name == "lvis_v1_train.json"
    for name in ("lvis_v0.5_val", "lvis_v1_val", "lvis_v1_minival_inserted_image_name"):
        folders.write_lvis(tmp_path, folders.lvis_content(), name)
        assert {LvisDataset._find(tmp_path, split).annotations.stem for split in ("val", "test")} == {name}


def spoil(key: str, value: Any, table: str = "images") -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[table][0][key] = value
        content[table][0] = {name: kept for name, kept in content[table][0].items() if kept is not None}

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (spoil("neg_category_ids", None), r"lvis_v1_train.json: image 1 has no list neg_category_ids.*coco:DIR"),
        (spoil("not_exhaustive_category_ids", 7), "image 1 has no list not_exhaustive_category_ids"),
        (spoil("neg_category_ids", [9, 5]), "neg_category_ids of image 1 holds 5, which is no category"),
        (spoil("frequency", None, "categories"), r"category 'gear_\(wheel\)' has frequency null; .* r, c, f"),
        (spoil("category_id", 5, "annotations"), "annotation 1 has category_id 5, which the file does not define"),
        (spoil("coco_url", None), "image 1 has neither file_name nor coco_url"),
    ],
)
def test_bad_files(change: Callable[[dict[str, Any]], None], expected: str, tmp_path: Path) -> None:
    content = folders.lvis_content()
    change(content)
    folders.write_lvis(tmp_path, content)
    with pytest.raises(ValueError, match=expected):
        LvisDataset(tmp_path, "train")


def test_nothing_known_of_any_image(tmp_path: Path) -> None:
    content = folders.lvis_content()
    folders.write_lvis(tmp_path, {**content, "images": content["images"][2:], "annotations": []})
    with pytest.raises(ValueError, match=r"lvis_v1_train.json has no box on any usable image"):
        LvisDataset(tmp_path, "train")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of lvis_v1_train.json, .*no .json file.*lvisdataset.org"):
        open_dataset(f"lvis:{tmp_path}", "train")
    folders.write_lvis(tmp_path, folders.lvis_content(), "lvis_v1_val")
    with pytest.raises(FileNotFoundError, match=r"split 'train': it has lvis_v1_val.json"):
        LvisDataset(tmp_path, "train")
    (tmp_path / "train2017" / "000000000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"train2017/000000000002.jpg does not exist"):
        LvisDataset(tmp_path, "val")
