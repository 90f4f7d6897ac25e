"""Images, captions, targets and outputs of Grounding DINO, against transformers' own code where it has some."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    MMGroundingDinoForObjectDetection,
)
from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps

from sdpt_ext.assets import BERT_VOCABULARY
from sdpt_ext.data.collate import EvalCollator, TrainCollator
from sdpt_ext.data.sources import open_dataset
from sdpt_ext.evaluation.inference import detect, detect_groups
from sdpt_ext.models.grounding_dino_processing import GroundingDinoDetectionProcessor
from sdpt_ext.models.loading import load_model

from ..tuners.test_grounding_dino import random_host

NAMES = ["Traffic light", "person", "St. Bernard", "who?"]


def save_host(folder: Path, model_class: Any = GroundingDinoForObjectDetection) -> Path:
    """A tiny random detector as the hub has them: model, tokenizer and image processor of transformers."""
    random_host(model_class, torch.float32, max_text_len=64, num_queries=30).save_pretrained(folder)
    BertTokenizer(vocab=str(BERT_VOCABULARY)).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> GroundingDinoDetectionProcessor:
    return GroundingDinoDetectionProcessor.from_pretrained(save_host(tmp_path_factory.mktemp("host")), 64)


def test_images_are_those_of_transformers(processor: GroundingDinoDetectionProcessor) -> None:
    pictures = [picture(90, 60), picture(50, 80)]
    theirs = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})(
        pictures, return_tensors="pt"
    )
    ours = processor(images=pictures, text=NAMES)
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=0.02)
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])


def test_caption_parts_names_as_the_loss_does(processor: GroundingDinoDetectionProcessor) -> None:
    batch = processor(images=[picture(60, 60)], text=NAMES)
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert text.replace(" ", "") == "[CLS]trafficlight.person.stbernard.who.[SEP]"
    (maps,) = build_label_maps(torch.zeros(1, 2, batch["input_ids"].shape[1]), batch["input_ids"])
    found = {label: row.nonzero().flatten().tolist() for label, row in enumerate(maps, start=1)}
    assert batch["label_to_tokens"] == [found]
    with pytest.raises(ValueError, match=r"'\.\.' has no letters"):
        processor(text=["person", ".."])
    with pytest.raises(ValueError, match="reads 64"):
        processor(text=["very long name"] * 30)


def test_targets_come_back_as_boxes(processor: GroundingDinoDetectionProcessor) -> None:
    annotation = {"boxes": [[8.0, 4.0, 40.0, 20.0], [0.0, 0.0, 90.0, 60.0]], "class_labels": [2, 1], "iscrowd": [0, 0]}
    batch = processor(images=[picture(90, 60)], text=NAMES, annotations=[annotation])
    (target,) = batch["labels"]
    assert target["class_labels"].tolist() == [1, 0]
    logits = torch.full((1, 2, 64), -torch.inf)
    for query, label in enumerate([2, 1]):
        logits[0, query, batch["label_to_tokens"][0][label]] = 3.0 - query
    outputs = SimpleNamespace(logits=logits, pred_boxes=target["boxes"][None])
    (found,) = processor.post_process_object_detection(
        outputs, batch["label_to_tokens"], batch["image_sizes"], batch["original_sizes"]
    )
    assert found["labels"].tolist() == [2, 1]
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2.0]).sigmoid())
    expected = torch.tensor([[8.0, 4.0, 47.0, 23.0], [0.0, 0.0, 89.0, 59.0]])
    torch.testing.assert_close(found["boxes"], expected, rtol=0, atol=1.0)  # a pixel of the resized image is wider


def test_a_class_scores_the_mean_of_its_tokens(processor: GroundingDinoDetectionProcessor) -> None:
    logits = torch.tensor([[[-9.0, 2.0, 0.0, -1.0]]])
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.full((1, 1, 4), 0.5))
    (found,) = processor.post_process_object_detection(outputs, [{1: [1, 2], 2: [3]}], [(10, 10)], threshold=0.0)
    p = logits[0, 0].sigmoid()
    torch.testing.assert_close(found["scores"], torch.stack([(p[1] + p[2]) / 2, p[3]]))
    assert found["labels"].tolist() == [1, 2]


@pytest.mark.parametrize("model_class", [GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection])
def test_the_loss_of_a_batch_is_that_of_its_images(model_class: Any, tmp_path: Path) -> None:
    model, processor = load_model(save_host(tmp_path, model_class))
    scenes = open_dataset("shapes:night", "val")
    names = [f"{'very ' * place}{name}" for place, name in enumerate(scenes.class_names)]
    collate = TrainCollator(processor, names, augment=False, classes_per_caption=3)
    items = [{**scenes[index], "seed": index} for index in range(4)]
    batch = collate(items)
    assert len({tuple(caption.tolist()) for caption in batch["input_ids"]}) == 4
    together = model(**batch).loss_dict
    boxes = [len(labels["boxes"]) for labels in batch["labels"]]
    alone = [model(**collate([item])).loss_dict for item in items]
    for name in ("loss_ce", "loss_ce_enc", "loss_bbox"):
        expected = sum(loss[name] * count for loss, count in zip(alone, boxes, strict=True)) / sum(boxes)
        torch.testing.assert_close(together[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", [GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection])
def test_several_captions_see_the_images_once(model_class: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model, processor = load_model(save_host(tmp_path, model_class))
    pictures = [picture(90, 60), picture(50, 80)]
    alone = [detect(model, processor, processor(images=pictures, text=[[name]] * 2)) for name in NAMES]
    encoder, calls = model.model.backbone.conv_encoder.model, []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *x, **y: calls.append(x) or forward(*x, **y))
    batch = EvalCollator(processor, NAMES, 1)([{"image": image, "image_id": 0} for image in pictures])
    found = detect_groups(model, processor, batch)
    assert len(calls) == 1
    for image, whole in enumerate(found):
        for label, parts in enumerate(alone, start=1):
            torch.testing.assert_close(whole["boxes"][whole["labels"] == label], parts[image]["boxes"])


@pytest.mark.parametrize("model_class", [GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection])
def test_a_saved_detector_loads_trains_and_detects(model_class: Any, tmp_path: Path) -> None:
    model, processor = load_model(save_host(tmp_path / "host", model_class))
    assert isinstance(model, model_class) and processor.config.max_text_tokens == 64
    scenes = open_dataset("shapes:night", "val")
    items = [scenes[0], {**scenes[1], "boxes": [], "class_labels": [], "iscrowd": []}]
    output = model(**TrainCollator(processor, scenes.class_names)(items))
    assert torch.isfinite(output.loss)
    batch = processor(images=[item["image"] for item in items], text=scenes.class_names)
    with torch.no_grad():
        outputs = model(**{name: batch[name] for name in processor.model_input_names})
    sizes = batch["image_sizes"], batch["original_sizes"]
    found = processor.post_process_object_detection(outputs, batch["label_to_tokens"], *sizes)
    assert [len(one["boxes"]) for one in found] == [30 * len(scenes.class_names)] * 2
    for one, same in zip(detect(model, processor, batch), found, strict=True):
        torch.testing.assert_close(one, same)

    processor.save_pretrained(tmp_path / "again")
    again = GroundingDinoDetectionProcessor.from_pretrained(tmp_path / "again", 64)
    for name, value in again(images=[picture(70, 60)], text=NAMES).items():
        torch.testing.assert_close(value, processor(images=[picture(70, 60)], text=NAMES)[name], rtol=1e-5, atol=1e-5)
