from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from torch import Tensor

from sdpt_ext.evaluation.coco import CocoEvaluator, metrics_table, save_predictions

CLASSES = ["cat", "dog", "emu"]
CATEGORY_IDS = [3, 7, 20]
# Per image (class, xywh): the last class has no object.
OBJECTS: dict[int, list[tuple[str, list[float]]]] = {
    1: [("cat", [10, 10, 20, 20]), ("dog", [50, 40, 60, 50])],
    2: [("cat", [5, 5, 120, 110])],
    9: [],
}


def dataset() -> Any:
    annotations = [
        {"image_id": image, "category_id": CATEGORY_IDS[CLASSES.index(name)], "bbox": box, "area": box[2] * box[3]}
        for image, objects in OBJECTS.items()
        for name, box in objects
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image, "width": 128, "height": 128} for image in OBJECTS],
        "categories": [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)],
        "annotations": [{"id": i, "iscrowd": 0, **x} for i, x in enumerate(annotations, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return SimpleNamespace(coco=coco, class_names=CLASSES, category_ids=CATEGORY_IDS)


def found(*detections: tuple[str, list[float], float]) -> dict[str, Tensor]:
    """From (class, xywh, score)."""
    boxes = torch.tensor([box for _, box, _ in detections]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] - 1
    labels = torch.tensor([CLASSES.index(name) + 1 for name, _, _ in detections], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "scores": torch.tensor([score for _, _, score in detections])}


def perfect(image: int) -> dict[str, Tensor]:
    return found(*((name, box, 0.9) for name, box in OBJECTS[image]))


def evaluate(detections: dict[int, dict[str, Tensor]]) -> dict[str, Any]:
    evaluator = CocoEvaluator(dataset())
    evaluator.update(list(detections), list(detections.values()))
    return evaluator.results()


def test_perfect_detections(capfd: pytest.CaptureFixture[str]) -> None:
    metrics = evaluate({image: perfect(image) for image in OBJECTS})
    assert metrics["per_class"] == pytest.approx({"cat": 1.0, "dog": 1.0, "emu": -1.0})
    assert [metrics[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")] == pytest.approx([1.0] * 6)
    assert capfd.readouterr().out == ""


def test_known_average_precision() -> None:
    shifted = found(("cat", [5, 5, 120, 80], 0.8), ("dog", [0, 0, 9, 9], 0.7))  # IoU 0.727: 5 of 10 thresholds
    metrics = evaluate({1: found(), 2: shifted, 9: found()})
    half_recall = 51 / 101
    assert metrics["AP50"] == pytest.approx(half_recall / 2)
    assert metrics["per_class"]["cat"] == pytest.approx(half_recall * 5 / 10)
    assert metrics["per_class"]["dog"] == 0
    assert metrics["AP"] == pytest.approx(half_recall / 4)
    assert (metrics["AP75"], metrics["APs"]) == (0, 0)


def test_no_predictions_at_all() -> None:
    metrics = evaluate({image: found() for image in OBJECTS})
    assert metrics["AP"] == 0 and metrics["per_class"] == {"cat": 0.0, "dog": 0.0, "emu": -1.0}


def test_only_the_images_seen_count() -> None:
    assert evaluate({1: perfect(1)})["AP"] == pytest.approx(1.0)
    assert evaluate({9: found(("cat", [0, 0, 5, 5], 0.5))})["AP"] == -1


def test_predictions_are_coco_results(tmp_path: Path) -> None:
    data = dataset()
    evaluator = CocoEvaluator(data)
    evaluator.update([1, 2], [perfect(1), found()])
    assert evaluator.predictions[1] == {
        "image_id": 1,
        "category_id": 7,
        "bbox": [50, 40, 60, 50],
        "score": pytest.approx(0.9),
    }
    save_predictions(tmp_path / "predictions.json", evaluator.predictions)
    assert json.loads((tmp_path / "predictions.json").read_text()) == evaluator.predictions
    save_predictions(tmp_path / "empty.json", [])
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_bad_updates() -> None:
    evaluator = CocoEvaluator(dataset())
    with pytest.raises(ValueError, match="no image was added"):
        evaluator.results()
    with pytest.raises(ValueError, match="image id 5 is not in the data set"):
        evaluator.update([5], [found()])
    evaluator.update([1], [found()])
    with pytest.raises(ValueError, match="image id 1 was added before"):
        evaluator.update([1], [found()])
    wrong = {**perfect(2), "labels": torch.tensor([4])}
    with pytest.raises(ValueError, match=r"labels 4\.\.4 found for a data set of 3 classes"):
        evaluator.update([2], [wrong])


def test_table_shows_fractions_and_gaps() -> None:
    table = metrics_table(evaluate({image: perfect(image) for image in OBJECTS}))
    assert "AP50   1.000" in table
    assert table.splitlines()[-2].split() == ["emu", "-"]
