from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpt_ext.data.lvis import LvisDataset
from sdpt_ext.evaluate import main
from sdpt_ext.evaluation.coco import metrics_table
from sdpt_ext.evaluation.lvis import LvisEvaluator
from tests.data import folders
from tests.random_detector import save_detector

pytest.importorskip("faster_coco_eval")

STAR, RING, GEAR, ENGINE = 1, 2, 3, 4
TRUTH = {1: [(STAR, [4, 5, 10, 8], 0.9), (RING, [20, 10, 12, 12], 0.8)], 2: [(STAR, [10, 10, 20, 15], 0.7)]}
SURE, ELSEWHERE = 0.95, [0, 20, 6, 6]
Found = tuple[int, list[float], float]


@pytest.fixture
def dataset(tmp_path: Path) -> LvisDataset:
    folders.write_lvis(tmp_path, folders.lvis_content(), "lvis_v1_val")
    return LvisDataset(tmp_path, "val")


def as_tensors(found: list[Found]) -> dict[str, Tensor]:
    boxes = torch.tensor([box for _, box, _ in found], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] - 1
    labels = torch.tensor([label for label, _, _ in found], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "scores": torch.tensor([score for *_, score in found])}


def evaluate(dataset: LvisDataset, extra: dict[int, list[Any]]) -> dict[str, Any]:
    evaluator = LvisEvaluator(dataset)
    evaluator.update([1, 2], [as_tensors([*TRUTH[image], *extra.get(image, [])]) for image in (1, 2)])
    return evaluator.results()


def test_perfect_detections(dataset: LvisDataset) -> None:
    metrics = evaluate(dataset, {})
    assert metrics["per_class"] == pytest.approx({"star": 1, "ring": 1, "gear_(wheel)": -1, "fire_engine": -1})
    expected = {"AP": 1, "AP50": 1, "AP75": 1, "APs": 1, "APm": -1, "APl": -1, "APr": 1, "APc": -1, "APf": 1}
    assert {name: value for name, value in metrics.items() if name != "per_class"} == pytest.approx(expected)
    assert ["APr", "1.000"] in [line.split() for line in metrics_table(metrics).splitlines()]


@pytest.mark.parametrize(
    ("image", "label"),
    [(1, ENGINE), (2, ENGINE), (2, RING), (1, RING)],
    ids=["never listed", "never listed, other image", "not listed there", "not all of them are marked"],
)
def test_what_nobody_checked_is_no_false_positive(dataset: LvisDataset, image: int, label: int) -> None:
    assert evaluate(dataset, {image: [(label, ELSEWHERE, SURE)]}) == evaluate(dataset, {})


def test_a_false_positive_of_a_class_that_was_checked(dataset: LvisDataset) -> None:
    metrics = evaluate(dataset, {1: [(STAR, ELSEWHERE, SURE)]})
    # Wrong, right, right: precision 1/2 and 2/3, of which the better counts at lower recalls too.
    assert metrics["per_class"]["star"] == metrics["APf"] == pytest.approx(2 / 3)
    assert (metrics["APr"], metrics["AP"]) == pytest.approx((1, (2 / 3 + 1) / 2))


def test_absent_classes_count_against_those_present_elsewhere(tmp_path: Path) -> None:
    content = folders.lvis_content()
    content["images"][1]["neg_category_ids"] = [7, 9]
    folders.write_lvis(tmp_path, content, "lvis_v1_val")
    metrics = evaluate(LvisDataset(tmp_path, "val"), {2: [(RING, ELSEWHERE, SURE)]})
    assert metrics["per_class"]["ring"] == metrics["APr"] == pytest.approx(1 / 2)


def test_only_the_best_300_of_an_image_count(dataset: LvisDataset) -> None:
    many = [(ENGINE, ELSEWHERE, SURE)] * 299
    assert evaluate(dataset, {1: many})["per_class"]["ring"] == 0
    assert evaluate(dataset, {1: many[1:]})["per_class"]["ring"] == 1


def test_no_detections(dataset: LvisDataset) -> None:
    evaluator = LvisEvaluator(dataset)
    evaluator.update([1, 2], [as_tensors([])] * 2)
    assert evaluator.results()["AP"] == 0


def test_without_the_library(dataset: LvisDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[lvis\]"'):
        LvisEvaluator(dataset)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.write_lvis(tmp_path, folders.lvis_content(), "lvis_v1_val")
    options = {
        "--model": save_detector(tmp_path / "detector"),
        "--data": f"lvis:{tmp_path}",
        "--output_dir": tmp_path / "out",
        "--classes_per_caption": 3,
        "--device": "cpu",
    }
    main([str(part) for option in options.items() for part in option])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 <= metrics["APr"] <= 1 and metrics["images"] == 2
    predictions = json.loads((tmp_path / "out" / "predictions_test.json").read_text())
    assert {found["category_id"] for found in predictions} == {3, 7, 9, 12}
    assert all(100 < sum(found["image_id"] == image for found in predictions) <= 300 for image in (1, 2))
    assert "APf" in capsys.readouterr().out
