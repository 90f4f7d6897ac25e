from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdpt_ext.data.pretrain import LabelledPhotographs, Photographs, PretrainStream, ShapeScenes, StreamOptions
from sdpt_ext.data.pretrain.augmentation import flip, zoom_crop
from sdpt_ext.data.pretrain.examples import Example
from sdpt_ext.data.shapes.vocabulary import ObjectName
from sdpt_ext.models.glip.captions import parse_names
from sdpt_ext.models.glip.processing import GlipProcessor
from tests.data import folders


@pytest.fixture(scope="module")
def processor() -> GlipProcessor:
    return GlipProcessor.nano()


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    data = folders.content(4, size=(80, 60))
    data["categories"].append({"id": 9, "name": "left arrow"})
    data["annotations"] = data["annotations"][:4]
    for record in data["images"]:
        record |= {"labelled_categories": [3, 7], "source": "a" if record["id"] < 4 else "b"}
    for split in ("train", "val"):
        folders.write(root, data, split)
    return root


@pytest.fixture(scope="module")
def stream(processor: GlipProcessor, photo_root: Path) -> PretrainStream:
    options = StreamOptions(batch_size=4, short_sides=(64, 96))
    return PretrainStream(processor, ShapeScenes(["raccoon"]), Photographs(photo_root), options)


def _captions(stream: PretrainStream, batch: dict) -> list[list[str]]:
    texts = stream.processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    return [parse_names(text) for text in texts]


def test_batch_is_what_the_model_takes(stream: PretrainStream) -> None:
    batch = stream.batch(0)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].shape[2] % 32 == batch["pixel_values"].shape[3] % 32 == 0
    height, width = batch["pixel_values"].shape[2:]
    for labels in batch["labels"]:
        boxes, rows = labels["boxes"], labels["positive_map"]
        assert rows.shape == (len(boxes), batch["input_ids"].shape[1])
        assert rows.any(dim=1).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height]) - 1).all()


def test_batches_depend_on_their_number_alone(stream: PretrainStream, processor: GlipProcessor) -> None:
    resumed = PretrainStream(processor, stream.scenes, stream.photographs, stream.options, start_step=2)
    direct = list(itertools.islice(resumed.loader(num_workers=0), 3))
    workers = list(itertools.islice(resumed.loader(num_workers=2), 3))
    for number, one, other in zip((2, 3, 4), direct, workers, strict=True):
        expected = stream.batch(number)
        for batch in (one, other):
            assert torch.equal(batch["pixel_values"], expected["pixel_values"])
            assert torch.equal(batch["input_ids"], expected["input_ids"])
            assert torch.equal(batch["labels"][0]["boxes"], expected["labels"][0]["boxes"])
    assert direct[0]["pixel_values"].shape != direct[1]["pixel_values"].shape or not torch.equal(
        direct[0]["pixel_values"], direct[1]["pixel_values"]
    )


def test_captions_stay_within_their_budget(processor: GlipProcessor) -> None:
    options = StreamOptions(batch_size=8, max_caption_tokens=20, short_sides=(64,))
    stream = PretrainStream(processor, ShapeScenes(), None, options)
    for number in range(4):
        assert stream.batch(number)["attention_mask"].sum(dim=1).max() <= 20


def test_positive_tokens_are_those_of_true_names(processor: GlipProcessor) -> None:
    stream = PretrainStream(processor, _OneStar(), None, StreamOptions(batch_size=1, forgotten=0.0, max_negatives=1))
    batch = stream.batch(0)
    row = batch["labels"][0]["positive_map"][0].bool()
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0][row])
    assert sorted(tokens) == ["red", "star", "star"]
    np.testing.assert_allclose(batch["labels"][0]["boxes"][0], [10, 20, 39, 59])


class _OneStar:
    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Example:
        boxes = np.array([[10, 20, 30, 40]], dtype=np.float32)
        return Example(Image.new("RGB", size), boxes, [frozenset(["star", "red star"])], ["blue ring"])


def test_normalisation_without_jitter_is_the_processors(processor: GlipProcessor) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    stream = PretrainStream(processor, ShapeScenes(), None, StreamOptions(brightness=0.0))
    example = Example(image, np.zeros((0, 4), np.float32), [], ["star"])
    pixels = stream._pixels([example], np.random.default_rng(1))
    plain = processor([image], shortest_edges=[64])["pixel_values"]
    # Only the tint of at most 4 % is left.
    assert (pixels - plain).abs().max() < 0.04 * 255 / min(processor.config.image_std) + 1e-3


def test_haze_spares_pictures_whose_names_speak_of_colours(processor: GlipProcessor) -> None:
    stream = PretrainStream(processor, ShapeScenes(), None, StreamOptions(brightness=0.0, veiled=1.0))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    clear = processor([image], shortest_edges=[64])["pixel_values"]

    def contrast(names: list[str]) -> torch.Tensor:
        example = Example(image, np.zeros((0, 4), np.float32), [], names)
        return (stream._pixels([example], np.random.default_rng(1)) / clear.std((2, 3), keepdim=True)).std((2, 3))

    assert (contrast(["star", "green apple"]) > 0.95).all()
    assert (contrast(["star", "apple"]) < 0.95).all()


def test_scene_negatives_are_true_of_nothing() -> None:
    scenes, rng = ShapeScenes(["raccoon"]), np.random.default_rng(0)
    drawn = [ObjectName("star", "red", "striped"), ObjectName("ring", "blue", "solid")]
    for _ in range(50):
        negatives = set(scenes._negatives(drawn, rng))
        assert not negatives & {"star", "red star", "striped star", "red striped star", "ring", "blue ring"}


def test_photo_captions_hold_labelled_names_only(processor: GlipProcessor, photo_root: Path) -> None:
    options = StreamOptions(batch_size=4, photo_ratio=1.0, short_sides=(64,))
    stream = PretrainStream(processor, ShapeScenes(), Photographs(photo_root), options)
    seen: set[str] = set()
    for number in range(6):
        for names in _captions(stream, stream.batch(number)):
            seen |= set(names)
    assert seen == {"star", "ring"}


def test_photos_without_labelled_categories_are_refused(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.content())
    with pytest.raises(ValueError, match=r"image 1\.jpg has no labelled_categories"):
        Photographs(tmp_path)


def test_small_sources_are_drawn_more_often(photo_root: Path) -> None:
    shares = np.diff(Photographs(photo_root)._probabilities, prepend=0)
    np.testing.assert_allclose(shares[3] / shares[0], 3**0.5)


def test_validation_asks_for_labelled_names_only(photo_root: Path) -> None:
    item = LabelledPhotographs(photo_root)[0]
    assert item["caption_labels"] == [1, 2]


def _corner_picture() -> tuple[Image.Image, np.ndarray]:
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[20:40, 30:60] = (255, 0, 0)
    return Image.fromarray(pixels), np.array([[30, 20, 30, 20]], dtype=np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_zoomed_boxes_follow_the_picture(seed: int) -> None:
    image, boxes = _corner_picture()
    size = (96, 64)
    picture, moved, visible = zoom_crop(image, boxes, size, np.random.default_rng(seed))
    assert picture.size == size
    red = np.asarray(picture).astype(int)
    mask = (red[:, :, 0] > 128) & (red[:, :, 1] < 60)
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    assert visible[0] == pytest.approx(min(visible[0], 1.0))
    if visible[0] > 0.3:
        x, y, width, height = moved[0]
        extent = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose((x, y, x + width, y + height), extent, atol=1.6)


def test_mirror_image_and_boxes() -> None:
    image, boxes = _corner_picture()
    mirrored, moved = flip(image, boxes)
    assert moved.tolist() == [[20, 20, 30, 20]]
    assert mirrored.getpixel((21, 21)) == (255, 0, 0)
