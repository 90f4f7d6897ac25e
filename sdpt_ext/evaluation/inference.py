"""A detector run over a data set."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from sdpt_ext.data.collate import EvalCollator
from sdpt_ext.data.lvis import LvisDataset
from sdpt_ext.evaluation.coco import CocoEvaluator
from sdpt_ext.evaluation.lvis import LvisEvaluator
from sdpt_ext.evaluation.sharing import own_batches, rank_and_size
from sdpt_ext.models.glip.captions import longest_caption
from sdpt_ext.models.loading import image_encoder


def evaluate_model(
    model: nn.Module,
    processor: Any,
    dataset: Any,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
    num_workers: int = 0,
    classes_per_caption: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Average precision of a detector on a data set.

    The model is in evaluation mode meanwhile and then in the mode it was in. The processes of an initialised
    `torch.distributed` share the batches; all must call this, and all get what one alone would.

    Args:
        processor: a `GlipProcessor`.
        dataset: a data set of `sdpt_ext.data.sources.open_dataset`.
        device: where to run; the model stays there. None: where the model is.
        progress: show a progress bar, in the first process.
        num_workers: processes that read images; 0 reads them in this one.
        classes_per_caption: classes that are asked for together; None for as many as one caption holds.

    Returns:
        The metrics of `CocoEvaluator.results` and all detections as COCO results.

    Raises:
        ValueError: the data set is empty, or names of its classes are too long for a caption.
    """
    if device is not None:
        model.to(device)
    batches = own_batches(len(dataset), batch_size)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=EvalCollator(processor, dataset.class_names, classes_per_caption),
    )
    evaluator = LvisEvaluator(dataset) if isinstance(dataset, LvisDataset) else CocoEvaluator(dataset)
    hidden, images = not progress or rank_and_size()[0] > 0, sum(map(len, batches))
    with _evaluation_mode(model), tqdm(total=images, desc="evaluate", unit="image", disable=hidden) as bar:
        for batch in loader:
            detections = detect_groups(model, processor, batch, evaluator.max_detections)
            evaluator.update(batch["image_id"], detections)
            bar.update(len(detections))
    evaluator.gather()
    return evaluator.results(), evaluator.predictions


def detect_groups(
    model: nn.Module, processor: Any, batch: Mapping[str, Any], max_detections: int | None = None
) -> list[dict[str, Tensor]]:
    """Detections of a batch of `EvalCollator`: those of all its captions, by descending score, as `detect` gives them.

    As in GLIP's own evaluation of many classes nothing is suppressed from one caption to another.
    """
    device = next(model.parameters()).device
    images = {key: value.to(device) if key in processor.model_input_names else value for key, value in batch.items()}
    with _images_encoded_once(model):
        found = [detect(model, processor, {**images, **caption}, max_detections) for caption in batch["captions"]]
    return [_joined(parts) for parts in zip(*found, strict=True)]


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    whole = {key: torch.cat([part[key] for part in parts]) for key in ("scores", "labels", "boxes")}
    order = whole["scores"].argsort(descending=True, stable=True)
    return {key: value[order] for key, value in whole.items()}


@contextmanager
def _images_encoded_once(model: nn.Module) -> Iterator[None]:
    """Within the context the image encoder computes what it is given once, however many captions follow."""
    encoder = image_encoder(model)
    if encoder is None:
        yield
        return
    former = vars(encoder).get("forward")
    # A tensor is found again by its identity.
    encoder.forward = functools.cache(encoder.forward)
    try:
        yield
    finally:
        if former is None:
            del encoder.forward
        else:
            encoder.forward = former


# Not inference_mode: what a module caches on its first forward must stay usable for training.
@torch.no_grad()
def detect(
    model: nn.Module, processor: Any, batch: Mapping[str, Any], max_detections: int | None = None
) -> list[dict[str, Tensor]]:
    """Detections of a batch that the processor made, boxes in pixels of the original images (inclusive xyxy).

    Args:
        max_detections: boxes per image and caption; None for the processor's own limit.

    Returns:
        Per image "scores" (D,), "labels" (D,) 1-based and "boxes" (D, 4), by descending score.
    """
    device = next(model.parameters()).device
    # No class stands behind the longest caption.
    read = longest_caption(batch["attention_mask"])
    inputs = {name: batch[name].to(device) for name in processor.model_input_names}
    captions = {
        name: inputs[name][:, :read] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs
    }
    outputs = model(**inputs | captions)
    limit = {} if max_detections is None else {"max_detections": max_detections}
    return processor.post_process_object_detection(
        outputs, batch["label_to_tokens"], batch["image_sizes"], batch["original_sizes"], **limit
    )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


__all__ = ["detect", "detect_groups", "evaluate_model"]
