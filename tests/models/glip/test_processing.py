from __future__ import annotations

import json
import string
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sdpt_ext.assets import BERT_VOCABULARY, NANO_VOCABULARY
from sdpt_ext.data import transforms
from sdpt_ext.models.glip.processing import GlipProcessor
from tests.golden import cases as golden_cases
from tests.golden import fill

GOLDEN = golden_cases.FOLDER


def _golden_image(case: dict) -> Image.Image:
    noise = fill.draw("input:" + case["name"], (case["h"], case["w"], 3))
    return Image.fromarray(np.clip(np.round(127.5 + 50 * noise), 0, 255).astype(np.uint8))


def test_batch_and_boxes_equal_the_official_ones() -> None:
    golden = np.load(GOLDEN / "p_preprocess_p1.npz")
    meta = json.loads(str(golden["meta"]))
    cases = meta["images"]
    annotations = [{"boxes": case["coco_xywh"], "class_labels": [1] * len(case["coco_xywh"])} for case in cases]
    batch = GlipProcessor.bert()([_golden_image(case) for case in cases], ["raccoon"], annotations)

    pixels = batch["pixel_values"].numpy()
    assert list(pixels.shape) == meta["batch_shape"]
    assert batch["image_sizes"].tolist() == meta["image_sizes"]
    sample = pixels.reshape(-1)[fill.sample_index(pixels.size, golden["batch"].size)]
    np.testing.assert_allclose(sample, golden["batch"], atol=1e-4)
    mean, std, largest = golden["batch__stat"]
    np.testing.assert_allclose([pixels.mean(), pixels.std(), abs(pixels).max()], [mean, std, largest], atol=1e-4)

    for case, labels, resized in zip(cases, batch["labels"], meta["image_sizes"], strict=True):
        np.testing.assert_allclose(
            labels["boxes"].numpy(), golden[f"{case['name']}.boxes_after_clip_and_resize"], atol=1e-3
        )
        back = transforms.scale_boxes(labels["boxes"], tuple(resized), (case["h"], case["w"]))
        np.testing.assert_allclose(
            transforms.corners_to_coco(back).numpy(), golden[f"{case['name']}.boxes_back_to_original_xywh"], atol=1e-3
        )


@pytest.mark.parametrize("case", json.loads((GOLDEN / "i_captions.json").read_text())["_resize_rule_wh_to_hw"])
def test_resize_rule(case: dict) -> None:
    assert list(transforms.resized_size(*case["wh"], 800, 1333)) == case["out_hw"]


def _image(width: int = 40, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_flip_mirrors_image_and_boxes() -> None:
    processor = GlipProcessor.nano()
    annotations = [{"boxes": [[3, 2, 10, 8]], "class_labels": [1]}]
    straight = processor([_image()], ["star"], annotations)
    mirrored = processor([_image()], ["star"], annotations, flips=[True])
    width = int(straight["image_sizes"][0, 1])
    assert torch.equal(mirrored["pixel_values"][..., :width], straight["pixel_values"][..., :width].flip(3))
    x1, _, x2, _ = straight["labels"][0]["boxes"][0].tolist()
    assert mirrored["labels"][0]["boxes"][0, [0, 2]].tolist() == pytest.approx([width - x2 - 1, width - x1 - 1])


def test_short_side_per_image_and_padding() -> None:
    batch = GlipProcessor.nano()([_image(), _image(20, 30)], shortest_edges=[64, 100])
    assert batch["image_sizes"].tolist() == [[64, 128], [150, 100]]
    assert batch["pixel_values"].shape == (2, 3, 160, 128)
    assert not batch["pixel_values"][0, :, 64:].any()


def test_crowds_and_boxes_outside_are_left_out_and_images_may_be_empty() -> None:
    annotations = [
        {"boxes": [[0, 0, 5, 5], [50, 0, 5, 5], [1, 1, 9, 9]], "class_labels": [1, 1, 2], "iscrowd": [0, 0, 1]},
        {"boxes": [], "class_labels": []},
    ]
    labels = GlipProcessor.nano()([_image(), _image()], ["star", "ring"], annotations)["labels"]
    assert labels[0]["class_labels"].tolist() == [1]
    assert labels[1]["boxes"].shape == (0, 4)
    assert labels[1]["positive_map"].shape == labels[0]["positive_map"][:0].shape


def test_text_per_image_and_as_one_string() -> None:
    processor = GlipProcessor.nano()
    batch = processor(text=[["star"], ["red star", "ring"]])
    assert [sorted(tokens) for tokens in batch["label_to_tokens"]] == [[1], [1, 2]]
    assert processor(text="red star. ring")["input_ids"][0].tolist() == batch["input_ids"][1].tolist()


def test_too_long_caption_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"300 class names has \d+ tokens and the model reads 256: split the classes"):
        GlipProcessor.nano()(text=["star"] * 300)


@pytest.mark.parametrize(
    ("text", "message"), [([], "no class names"), (" . ", "no class names"), ([["a"]], "1 lists of class names for 2")]
)
def test_bad_text(text: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlipProcessor.nano()([_image(), _image()], text)


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    for processor in (GlipProcessor.nano(), GlipProcessor.bert()):
        processor.save_pretrained(tmp_path)
        loaded = GlipProcessor.from_pretrained(tmp_path)
        assert loaded.config == processor.config
        ids = processor(text=["Rubik's cube", "T-shirt"])["input_ids"]
        assert torch.equal(loaded(text=["Rubik's cube", "T-shirt"])["input_ids"], ids)


def test_load_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no processor_config\.json"):
        GlipProcessor.from_pretrained(tmp_path)
    GlipProcessor.nano().save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"shortest": 3}')
    with pytest.raises(ValueError, match="unknown keys \\['shortest'\\]"):
        GlipProcessor.from_pretrained(tmp_path)


def test_unreadable_names_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    processor = GlipProcessor.nano()
    for _ in range(2):
        processor(text=["star", "浣熊"])
    assert [record.getMessage() for record in caplog.records] == [
        "the vocabulary can't spell the class name '浣熊'; write it in plain English"
    ]


def test_detections_come_back_in_original_pixels() -> None:
    processor = GlipProcessor.nano()
    batch = processor([_image(128, 64)], ["star", "ring"])
    assert batch["image_sizes"].tolist() == [[192, 384]]
    level_sizes = [(24, 48), (12, 24), (6, 12), (3, 6), (2, 3)]
    count = sum(height * width for height, width in level_sizes)
    logits = torch.full((1, count, batch["input_ids"].shape[1]), -12.0)
    place = 10 * 48 + 20
    logits[0, place, batch["label_to_tokens"][0][2]] = 12.0
    outputs = SimpleNamespace(
        logits=logits,
        box_deltas=torch.zeros(1, count, 4),
        centerness=torch.full((1, count, 1), 12.0),
        level_sizes=level_sizes,
    )
    sizes = (batch["label_to_tokens"], batch["image_sizes"])
    (resized,) = processor.post_process_object_detection(outputs, *sizes)
    (original,) = processor.post_process_object_detection(outputs, *sizes, batch["original_sizes"])
    assert resized["labels"].tolist() == [2]
    assert resized["scores"].item() == pytest.approx(1.0, abs=1e-4)
    # Centre (stride - 1) / 2 + stride * cell; half of the anchor's side less one.
    assert resized["boxes"][0].tolist() == pytest.approx([148.0, 68.0, 179.0, 99.0])
    assert original["boxes"][0].tolist() == pytest.approx([value / 3 for value in (148.0, 68.0, 179.0, 99.0)], rel=1e-5)


def test_vocabularies() -> None:
    bert = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()
    nano = NANO_VOCABULARY.read_text(encoding="utf-8").splitlines()
    assert len(bert) == 30522
    assert len(nano) == len(set(nano)) == 2048
    assert nano[0] == "[PAD]"
    tokenizer = GlipProcessor.nano().tokenizer
    every_name = ["Zorp", "çà-va?", "qxzj0918273645", string.ascii_letters, string.punctuation]
    assert tokenizer.unk_token_id not in tokenizer(" ".join(every_name))["input_ids"]
