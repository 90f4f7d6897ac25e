from __future__ import annotations

import pytest
import torch

from sdpt_ext.data.collate import EvalCollator, TrainCollator
from sdpt_ext.data.shapes import ShapesDataset
from sdpt_ext.models.glip.processing import GlipProcessor


@pytest.fixture(scope="module")
def processor() -> GlipProcessor:
    return GlipProcessor.nano()


@pytest.fixture(scope="module")
def dataset() -> ShapesDataset:
    return ShapesDataset("base", "train", size=4)


def test_training_batch_holds_model_inputs_only(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    batch = TrainCollator(processor, dataset.class_names)([dataset[index] for index in range(4)])
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    length = batch["input_ids"].shape[1]
    for index, labels in enumerate(batch["labels"]):
        assert labels["class_labels"].tolist() == dataset.labels(index)
        assert labels["positive_map"].shape == (len(labels["boxes"]), length)
        assert labels["positive_map"].any(dim=1).all()


def test_augmentation_depends_on_the_items_seed_alone(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    collator = TrainCollator(processor, dataset.class_names)
    items = [{**dataset[0], "seed": seed} for seed in range(12)]
    batches = [collator([item]) for item in items]
    again = [TrainCollator(processor, dataset.class_names, seed=9)([item]) for item in items]
    assert len({batch["pixel_values"].shape[2] for batch in batches}) > 2
    for batch, same in zip(batches, again, strict=True):
        assert torch.equal(batch["pixel_values"], same["pixel_values"])


def test_without_augmentation_the_test_size_is_used(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    batch = TrainCollator(processor, dataset.class_names, augment=False)([dataset[0]])
    assert torch.equal(batch["pixel_values"], processor([dataset[0]["image"]])["pixel_values"])


def test_too_long_caption_is_refused_before_training(processor: GlipProcessor) -> None:
    with pytest.raises(ValueError, match="split the classes"):
        TrainCollator(processor, ["star"] * 200)


def test_evaluation_batch(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    batch = EvalCollator(processor, dataset.class_names)([dataset[0], dataset[1]])
    assert batch["image_id"] == [1, 2]
    assert batch["original_sizes"].tolist() == [[256, 256]] * 2
    assert [sorted(tokens) for tokens in batch["label_to_tokens"]] == [list(range(1, 9))] * 2


def test_items_may_be_asked_for_some_classes_only(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    items = [{**dataset[0], "caption_labels": [3, 7]}, dataset[1]]
    batch = EvalCollator(processor, dataset.class_names)(items)
    assert sorted(batch["label_to_tokens"][0]) == [3, 7]
    asked = batch["input_ids"][0][batch["label_to_tokens"][0][3]]
    whole = batch["input_ids"][1][batch["label_to_tokens"][1][3]]
    assert asked.tolist() == whole.tolist()
