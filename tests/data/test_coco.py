from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdpt_ext.data.coco import DetectionDataset, read_image
from tests.data import folders


def test_items_have_ranked_labels_and_the_pictures_boxes(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content())
    dataset = DetectionDataset(tmp_path, "train")
    assert dataset.class_names == ["star", "ring"]
    assert dataset.category_ids == [3, 7]
    item = dataset[1]
    assert item["image_id"] == 2
    assert item["image"].size == (40, 30)
    assert item["image"].mode == "RGB"
    assert item["boxes"].tolist() == [[4, 5, 10, 8]] * 2
    assert item["class_labels"].tolist() == [2, 1]
    assert item["iscrowd"].tolist() == [0, 0]


def test_ground_truth_is_that_of_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folders.content()
    data["annotations"][0]["id"] = 0
    folders.write(tmp_path, data)
    coco = DetectionDataset(tmp_path, "train").select([2, 0]).coco
    assert sorted(coco.imgs) == [1, 3]
    assert len(coco.anns) == 4
    assert min(coco.anns) == 1
    assert capsys.readouterr().out == ""


def test_image_without_boxes_is_kept(tmp_path: Path) -> None:
    data = folders.content()
    data["annotations"] = data["annotations"][:2]
    folders.write(tmp_path, data)
    item = DetectionDataset(tmp_path, "train")[2]
    assert item["boxes"].shape == (0, 4)
    assert item["class_labels"].shape == (0,)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_roboflow_layout_without_its_umbrella_category(tmp_path: Path, split: str) -> None:
    data = folders.content()
    data["categories"] = [
        {"id": 0, "name": "shapes", "supercategory": "none"},
        {"id": 3, "name": "star", "supercategory": "shapes"},
        {"id": 7, "name": "ring", "supercategory": "shapes"},
    ]
    folders.write(tmp_path, data, split, layout="roboflow")
    dataset = DetectionDataset(tmp_path, "val" if split == "valid" else split)
    assert dataset.class_names == ["star", "ring"]
    assert dataset[0]["class_labels"].tolist() == [2, 1]


def test_coco_2017_layout_is_tested_on_val(tmp_path: Path) -> None:
    file = folders.write(tmp_path, folders.content(), "val2017")
    file.rename(file.with_name("instances_val2017.json"))
    assert len(DetectionDataset(tmp_path, "val")) == len(DetectionDataset(tmp_path, "test")) == 3


def test_single_class_named_like_no_umbrella_is_kept(tmp_path: Path) -> None:
    data = folders.content()
    for category in data["categories"]:
        category["supercategory"] = "none"
    folders.write(tmp_path, data)
    assert len(DetectionDataset(tmp_path, "train").class_names) == 2


def test_missing_split_lists_those_that_exist(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content())
    with pytest.raises(FileNotFoundError, match=r"has no split 'test': it has train\. Expected test/"):
        DetectionDataset(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        DetectionDataset(tmp_path / "nowhere", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no split in a known layout"):
        DetectionDataset(tmp_path / "empty", "train")


def _change(key: str, index: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data[key][index].update(values)


def _keep(key: str, count: int) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update({key: data[key][:count]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("annotations", 0, category_id=99), r"annotation 2 has category_id 99, .* add it to 'categories'"),
        (_change("annotations", 0, image_id=50), r"annotation 2 has image_id 50, .* add it to 'images'"),
        (_change("annotations", 0, bbox=[1, 2, 3]), r"annotation 2 has bbox \[1, 2, 3\]; it must be four numbers"),
        (_change("annotations", 0, bbox=[1, 2, 3, float("nan")]), "must be four numbers"),
        (_change("images", 1, id=1), "image id 1 occurs more than once"),
        (_change("categories", 1, id=7), "category id 7 occurs more than once"),
        (_change("categories", 1, name=" "), "needs an id and a name"),
        (_change("categories", 1, name="(star)"), "what stands in parentheses is not read"),
        (lambda data: data["images"][0].pop("width"), r"image 1\.jpg has no width"),
        (_keep("images", 0), "lists no images: the data set is empty"),
        (_keep("categories", 0), "lists no categories"),
        (_keep("annotations", 0), "no box on any usable image"),
        (lambda data: data.pop("annotations"), "has no list annotations"),
    ],
)
def test_unusable_json_is_an_error_that_names_file_and_value(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    file = folders.write(tmp_path, folders.content())
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as caught:
        DetectionDataset(tmp_path, "train")
    assert str(file) in str(caught.value)


def test_broken_json_names_file_and_place(tmp_path: Path) -> None:
    file = folders.write(tmp_path, folders.content())
    file.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"train\.json is not valid JSON: .*line 1"):
        DetectionDataset(tmp_path, "train")


def test_boxes_outside_are_cut_or_left_out_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folders.content()
    boxes = [[30, 20, 20, 30], [-5, -5, 10, 10], [41, 0, 5, 5], [0, 0, 0, 4], [0.0, 0.0, 40.5, 30]]
    for annotation, box in zip(data["annotations"], boxes, strict=False):
        annotation["bbox"] = box
    folders.write(tmp_path, data)
    with caplog.at_level(logging.WARNING):
        dataset = DetectionDataset(tmp_path, "train")
    assert "2 cut to their image, 1 left out (outside the image), 1 left out (no width or height)" in caplog.text
    assert dataset[0]["boxes"].tolist() == [[30, 20, 10, 10], [0, 0, 5, 5]]
    assert dataset.annotations(0)[0]["area"] == 100
    assert len(dataset[1]["boxes"]) == 0
    assert dataset[2]["boxes"][0].tolist() == [0, 0, 40, 30]


def test_equal_names_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folders.content()
    data["categories"][0]["name"] = "Star"
    folders.write(tmp_path, data)
    DetectionDataset(tmp_path, "train")
    assert "share the name ['star']" in caplog.text


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def _resize(file: Path) -> None:
    read_image(file).resize((20, 20)).save(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"2\.jpg does not exist; add it or remove its record"),
        (_truncate, r"2\.jpg can't be read \(.*truncated.*\); replace it"),
        (lambda file: file.write_text("no picture"), r"2\.jpg can't be read"),
        (lambda file: file.write_text(""), r"2\.jpg can't be read"),
        (_resize, r"2\.jpg has 20 x 20 pixels but its record says 40 x 30"),
    ],
)
def test_damaged_image_is_left_out_of_training_and_an_error_elsewhere(
    tmp_path: Path, damage: Callable[[Path], None], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    folders.write(tmp_path, folders.content())
    damage(tmp_path / "train" / "2.jpg")
    dataset = DetectionDataset(tmp_path, "train")
    assert [record["id"] for record in dataset.records] == [1, 3]
    assert "1 of 3 images left out; the first: image" in caplog.text
    with pytest.raises(OSError, match=message):
        DetectionDataset(tmp_path, "train", strict=True)
    with pytest.raises(OSError, match=message):
        read_image(tmp_path / "train" / "2.jpg", (40, 30))


def test_evaluation_splits_are_strict(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content(), "test")
    (tmp_path / "test" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.jpg does not exist"):
        DetectionDataset(tmp_path, "test")


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content())
    for file in (tmp_path / "train").iterdir():
        file.unlink()
    with pytest.raises(OSError, match="none of its 3 images can be used"):
        DetectionDataset(tmp_path, "train")


def test_jpeg_with_bytes_after_its_end_is_read(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content())
    file = tmp_path / "train" / "2.jpg"
    file.write_bytes(file.read_bytes() + b"trailer")
    assert len(DetectionDataset(tmp_path, "train", strict=True)) == 3


def test_gray_pictures_become_rgb(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content())
    file = tmp_path / "train" / "1.jpg"
    read_image(file).convert("L").save(file)
    assert DetectionDataset(tmp_path, "train")[0]["image"].mode == "RGB"
