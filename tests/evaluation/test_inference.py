from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sdpt_ext.data.collate import EvalCollator, TrainCollator
from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.evaluation.inference import detect, detect_groups, evaluate_model
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.models.glip.anchors import level_anchors
from sdpt_ext.models.glip.assignment import assign_atss
from sdpt_ext.models.glip.box_coder import encode
from sdpt_ext.models.glip.modeling import GlipOutput
from sdpt_ext.models.glip.processing import GlipProcessor

NAMES = ["traffic light", "raccoon", "red panda"]
SIZES = [(300, 200), (200, 330), (256, 256), (90, 120), (400, 100)]


class BlankImages(DetectionImages):
    """Images of several shapes with two boxes each, without content."""

    def __init__(self) -> None:
        boxes = [[[10, 20, 0.5 * w, 0.4 * h], [0.6 * w, 0.5 * h, 0.35 * w, 0.45 * h]] for w, h in SIZES]
        objects = [(i, box, k) for i, pair in enumerate(boxes) for k, box in enumerate(pair)]
        super().__init__(
            {
                "images": [{"id": 10 + i, "width": w, "height": h} for i, (w, h) in enumerate(SIZES)],
                "categories": [{"id": 4 + 2 * i, "name": name} for i, name in enumerate(NAMES)],
                "annotations": [
                    {"image_id": 10 + i, "bbox": box, "area": box[2] * box[3], "category_id": 4 + 2 * k, "iscrowd": 0}
                    for i, box, k in objects
                ],
            }
        )

    def load_image(self, index: int) -> Image.Image:
        return Image.new("RGB", (self.records[index]["width"], self.records[index]["height"]))


class PerfectDetector(nn.Module):
    """Answers every batch with outputs that encode its ground truth, given in advance."""

    def __init__(self, processor: GlipProcessor, labels: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.config = processor.config
        self.labels = iter(labels)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> GlipOutput:
        assert not self.training and not torch.is_grad_enabled()
        level_sizes = tuple(
            (-(-pixel_values.shape[2] // stride), -(-pixel_values.shape[3] // stride))
            for stride in self.config.anchor_strides
        )
        levels = level_anchors(level_sizes, self.config.anchor_strides, self.config.anchor_sizes)
        outputs = [self._encode(levels, next(self.labels)) for _ in input_ids]
        logits, deltas = (torch.stack(part) for part in zip(*outputs, strict=True))
        centerness = torch.full((*deltas.shape[:2], 1), 4.0)
        return GlipOutput(logits=logits, box_deltas=deltas, centerness=centerness, level_sizes=level_sizes)

    def _encode(self, levels: list[Tensor], label: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        anchors, matched = torch.cat(levels), assign_atss(levels, label["boxes"])
        positive = (matched >= 0)[:, None]
        logits = torch.where(positive & (label["positive_map"][matched] > 0), 5.0, -9.0)
        return logits, torch.where(positive, encode(anchors, label["boxes"][matched]), 0.0)


def perfect_detector(processor: GlipProcessor, dataset: BlankImages) -> PerfectDetector:
    collate = TrainCollator(processor, dataset.class_names, augment=False)
    return PerfectDetector(processor, [collate([dataset[i]])["labels"][0] for i in range(len(dataset))])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_outputs_that_encode_the_ground_truth_score_one(batch_size: int) -> None:
    processor, dataset = GlipProcessor.nano(), BlankImages()
    model = perfect_detector(processor, dataset).train()
    metrics, predictions = evaluate_model(model, processor, dataset, batch_size, progress=False)
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["per_class"] == pytest.approx({"traffic light": 1.0, "raccoon": 1.0, "red panda": -1.0})
    assert model.training
    truth = {(x["image_id"], x["category_id"]): x["bbox"] for x in dataset.content["annotations"]}
    assert len(predictions) >= len(truth)
    for prediction in predictions:
        assert prediction["bbox"] == pytest.approx(truth[prediction["image_id"], prediction["category_id"]], abs=0.5)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    processor, dataset = GlipProcessor.nano(), BlankImages()
    evaluate_model(perfect_detector(processor, dataset), processor, dataset, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "5/5" in captured.err


def test_the_mode_comes_back_after_an_error() -> None:
    class Broken(nn.Linear):
        def forward(self, **inputs: Any) -> None:  # type: ignore[override]
            raise RuntimeError("broken")

    model = Broken(1, 1).train()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate_model(model, GlipProcessor.nano(), BlankImages(), progress=False)
    assert model.training


def talkative_detector() -> GlipForObjectDetection:
    """Random weights that find something everywhere."""
    torch.manual_seed(0)
    model = GlipForObjectDetection(GlipConfig.nano()).eval()
    model.head.bias0.data.fill_(-1.0)
    return model


def test_detections_of_several_captions_are_joined_and_the_backbone_runs_once(monkeypatch: Any) -> None:
    processor, dataset, model = GlipProcessor.nano(), BlankImages(), talkative_detector()
    items = [dataset[index] for index in range(2)]
    images = processor(images=[item["image"] for item in items])
    alone = [detect(model, processor, {**images, **processor(text=[[name]] * 2)}) for name in NAMES]
    body, calls = model.backbone.body.forward, []
    monkeypatch.setattr(model.backbone.body, "forward", lambda *x: calls.append(x) or body(*x))
    found = detect_groups(model, processor, EvalCollator(processor, NAMES, classes_per_caption=1)(items))
    assert len(calls) == 1 and "forward" not in vars(model.backbone)
    for image, whole in enumerate(found):
        assert whole["scores"].tolist() == sorted(whole["scores"].tolist(), reverse=True)
        for label, parts in enumerate(alone, start=1):
            chosen = whole["labels"] == label
            assert chosen.sum() > 5
            assert torch.equal(whole["boxes"][chosen], parts[image]["boxes"])
            assert torch.equal(whole["scores"][chosen], parts[image]["scores"])


def test_every_batch_gets_its_own_features() -> None:
    processor, dataset, model = GlipProcessor.nano(), BlankImages(), talkative_detector()
    _, one_by_one = evaluate_model(model, processor, dataset, 1, progress=False, classes_per_caption=2)
    _, again = evaluate_model(model, processor, dataset.select([3, 4]), 1, progress=False, classes_per_caption=2)
    assert again == [detection for detection in one_by_one if detection["image_id"] >= 13]


def test_a_caption_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, calls = GlipForObjectDetection(GlipConfig.nano()), []
    encode = model.text_encoder._encode
    monkeypatch.setattr(model.text_encoder, "_encode", lambda *x: calls.append(x) or encode(*x))
    processor = GlipProcessor.nano()
    evaluate_model(model, processor, BlankImages(), batch_size=1, progress=False)
    assert len(calls) == 1
    evaluate_model(model, processor, BlankImages(), batch_size=2, progress=False)
    assert len(calls) == 3, "the last batch is a smaller one"
