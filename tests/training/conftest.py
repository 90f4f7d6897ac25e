"""A detector and a data set that are as small as they can be, saved once for all tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import BertConfig, SwinConfig

from sdpt_ext.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor
from sdpt_ext.train import main

COLOURS = {"red square": (220, 30, 30), "blue square": (30, 30, 220)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_config() -> GlipConfig:
    backbone = SwinConfig(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=4, drop_path_rate=0.1)
    backbone.out_features = ["stage2", "stage3", "stage4"]
    text = BertConfig(
        vocab_size=2048,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    return GlipConfig.nano(
        backbone_config=backbone, text_config=text, hidden_size=32, num_head_layers=2, fusion_dim=64, fusion_heads=2
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights and its processor, which shrinks images to 64 pixels."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GlipForObjectDetection(small_config()).save_pretrained(folder)
    GlipProcessor.nano().save_pretrained(folder)
    path = folder / "processor_config.json"
    sizes = {"shortest_edge": 64, "longest_edge": 96, "train_shortest_edges": [48, 64]}
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with two classes: 6 images to train on, 2 to validate and 2 to test on."""
    root = tmp_path_factory.mktemp("data")
    (root / "annotations").mkdir()
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        (root / split).mkdir()
        content = _draw_split(root / split, count)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def _draw_split(folder: Path, count: int) -> dict[str, object]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(1, count + 1):
        picture = Image.new("RGB", (80, 64), (120, 120, 120))
        for category, colour in enumerate(COLOURS.values(), start=1):
            box = [2 + 2 * number + 35 * (category - 1), 10 + 2 * number, 24, 24]
            ImageDraw.Draw(picture).rectangle((box[0], box[1], box[0] + 23, box[1] + 23), fill=colour)
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
            annotations.append(annotation | {"area": 24 * 24, "iscrowd": 0})
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 64})
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def train(model_folder: Path, data_folder: Path) -> Callable[..., None]:
    """Runs the command on the small model and data: `train(folder, "--max_steps", 4)`."""

    def run(output: Path, *flags: object) -> None:
        common = ("--model", model_folder, "--data", data_folder, "--output_dir", output)
        small = ("--per_device_train_batch_size", 2, "--logging_steps", 1)
        main([str(flag) for flag in (*common, *small, *flags)])

    return run
