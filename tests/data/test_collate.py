from __future__ import annotations

from typing import Any

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


def test_too_long_names_are_refused_before_training(processor: GlipProcessor) -> None:
    with pytest.raises(ValueError, match="alone is longer"):
        TrainCollator(processor, ["star " * 300])
    with pytest.raises(ValueError, match="--classes_per_caption 200 is too many"):
        TrainCollator(processor, ["star"] * 200, classes_per_caption=200)


def asked(batch: dict[str, Any], processor: GlipProcessor) -> list[list[str]]:
    """The names in each caption."""
    return [processor.tokenizer.decode(ids, skip_special_tokens=True).split(". ") for ids in batch["input_ids"]]


@pytest.mark.parametrize("many", [True, False])
def test_captions_of_many_classes_are_drawn_per_image(
    processor: GlipProcessor, dataset: ShapesDataset, many: bool
) -> None:
    names = [*dataset.class_names, *(f"thing {number}" for number in range(200 if many else 2))]
    collator = TrainCollator(processor, names, classes_per_caption=None if many else 9)
    items = [{**dataset[index], "seed": index} for index in range(4)]
    batch = collator(items)
    captions = asked(batch, processor)
    assert len({tuple(caption) for caption in captions}) == 4
    for item, caption, labels in zip(items, captions, batch["labels"], strict=True):
        shown = [names[label - 1] for label in item["class_labels"].tolist()]
        assert [caption[position - 1] for position in labels["class_labels"]] == shown
        assert labels["positive_map"].any(dim=1).all()
        assert len(caption) > 20 if many else len(caption) == 9
    assert torch.equal(collator(items)["input_ids"], batch["input_ids"])


def test_boxes_whose_class_has_no_room_are_left_out(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    item = next(item for item in (dataset[index] for index in range(4)) if len(set(item["class_labels"].tolist())) > 1)
    batch = TrainCollator(processor, dataset.class_names, classes_per_caption=1)([{**item, "seed": 0}])
    ((name,),), (labels,) = asked(batch, processor), batch["labels"]
    kept = [dataset.class_names[label - 1] == name for label in item["class_labels"].tolist()]
    assert 0 < len(labels["boxes"]) == sum(kept) < len(kept) and set(labels["class_labels"].tolist()) == {1}


def test_items_may_say_what_is_absent(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    item = {**dataset[0], "class_labels": torch.full_like(dataset[0]["class_labels"], 4), "negative_labels": [6, 1]}
    (caption,) = asked(TrainCollator(processor, dataset.class_names)([item]), processor)
    assert sorted(caption) == sorted(dataset.class_names[label - 1] for label in (1, 4, 6))


def test_evaluation_batch(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    batch = EvalCollator(processor, dataset.class_names)([dataset[0], dataset[1]])
    assert batch["image_id"] == [1, 2]
    assert batch["original_sizes"].tolist() == [[256, 256]] * 2
    (caption,) = batch["captions"]
    assert [sorted(tokens) for tokens in caption["label_to_tokens"]] == [list(range(1, 9))] * 2


def test_evaluation_batch_in_several_captions(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    batch = EvalCollator(processor, dataset.class_names, 3)([dataset[0], dataset[1]])
    labels = [[sorted(tokens) for tokens in caption["label_to_tokens"]] for caption in batch["captions"]]
    assert labels == [[[1, 2, 3]] * 2, [[4, 5, 6]] * 2, [[7, 8]] * 2]
    names = [name for caption in batch["captions"] for name in asked(caption, processor)[0]]
    assert names == dataset.class_names


def test_items_may_be_asked_for_some_classes_only(processor: GlipProcessor, dataset: ShapesDataset) -> None:
    items = [{**dataset[0], "caption_labels": [3, 7]}, dataset[1]]
    (caption,) = EvalCollator(processor, dataset.class_names)(items)["captions"]
    own, everything = caption["label_to_tokens"]
    assert sorted(own) == [3, 7]
    assert caption["input_ids"][0][own[3]].tolist() == caption["input_ids"][1][everything[3]].tolist()
