"""Captions padded by hand cost and give what they do without: padding reaches no real token, loss or detection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdpt_ext
from sdpt_ext.evaluation.inference import detect
from sdpt_ext.models import GlipConfig, GlipForObjectDetection, GlipProcessor
from sdpt_ext.models.glip.head import LOGIT_LIMIT
from sdpt_ext.tuners.sdpt import SDPTConfig

NAMES = [["raccoon", "red panda", "fox"], ["traffic light"]]
LENGTH = 256


@pytest.fixture(scope="module", params=["zero-shot", "prompts"])
def model(request: pytest.FixtureRequest) -> GlipForObjectDetection:
    torch.manual_seed(0)
    model = GlipForObjectDetection(GlipConfig.nano())
    nn.init.constant_(model.head.bias0, -1.0)
    if request.param == "prompts":
        sdpt_ext.tune(model, SDPTConfig(num_tokens=3))
    return model.double().eval()


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    """Two pictures whose captions differ in length, without padding behind the longer one."""
    pictures = [torch.randint(0, 255, (64, 96, 3), dtype=torch.uint8).numpy() for _ in NAMES]
    annotations = [{"boxes": [[10, 8, 40, 32]], "class_labels": [2]}, {"boxes": [], "class_labels": []}]
    batch = GlipProcessor.nano()(images=pictures, text=NAMES, annotations=annotations, shortest_edges=[64, 64])
    return {**batch, "pixel_values": batch["pixel_values"].double()}


def padded(batch: dict[str, Any]) -> dict[str, Any]:
    def pad(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, LENGTH - tensor.shape[-1]))

    labels = [{**label, "positive_map": pad(label["positive_map"])} for label in batch["labels"]]
    texts = {name: pad(batch[name]) for name in ("input_ids", "attention_mask")}
    return {**batch, **texts, "labels": labels}


def run(model: GlipForObjectDetection, batch: dict[str, Any], **options: Any) -> Any:
    return model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}, **options)


class WidthsSeen:
    """How many tokens every part of the model was given."""

    def __init__(self, model: GlipForObjectDetection) -> None:
        self.widths: set[int] = set()
        parts = [model.text_encoder.model.embeddings, *model.head.fusion_blocks]
        parts += [layer.attention for layer in model.head.dyhead_tower if hasattr(layer, "attention")]
        parts += [model.head.dot_product_projection_text]
        self.handles = [part.register_forward_hook(self._look, with_kwargs=True) for part in parts]

    def _look(self, part: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Tensor], output: Any) -> None:
        text = output[1] if isinstance(output, tuple) else output
        self.widths.add(text.shape[1])

    def __enter__(self) -> set[int]:
        return self.widths

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("padding_logits", [True, False])
def test_real_tokens(model: GlipForObjectDetection, batch: dict[str, Any], padding_logits: bool) -> None:
    exact = run(model, batch)
    with WidthsSeen(model) as widths:
        output = run(model, padded(batch), padding_logits=padding_logits)
    length = batch["input_ids"].shape[1]
    assert widths == {LENGTH if padding_logits else length}
    assert output.logits.shape == (*exact.logits.shape[:2], LENGTH)
    real = batch["attention_mask"].bool()[:, None].expand_as(exact.logits)
    torch.testing.assert_close(output.logits[..., :length][real], exact.logits[real])
    torch.testing.assert_close(output.box_deltas, exact.box_deltas)
    torch.testing.assert_close(output.centerness, exact.centerness)
    lowest = (output.logits[..., length:] == -LOGIT_LIMIT).all()
    assert lowest != padding_logits


@torch.no_grad()
def test_detections(model: GlipForObjectDetection, batch: dict[str, Any]) -> None:
    processor = GlipProcessor.nano()
    expected = detect(model, processor, batch)
    assert all(len(found["scores"]) > 5 for found in expected)
    with WidthsSeen(model) as widths:
        found = detect(model, processor, padded(batch))
    assert widths == {batch["input_ids"].shape[1]}
    full = run(model, padded(batch), padding_logits=True)
    arguments = (batch["label_to_tokens"], batch["image_sizes"], batch["original_sizes"])
    for detections in (found, processor.post_process_object_detection(full, *arguments)):
        for ours, theirs in zip(detections, expected, strict=True):
            assert torch.equal(ours["labels"], theirs["labels"])
            torch.testing.assert_close(ours["scores"], theirs["scores"])
            torch.testing.assert_close(ours["boxes"], theirs["boxes"])


def test_losses_and_gradients(model: GlipForObjectDetection, batch: dict[str, Any]) -> None:
    results = []
    for inputs, padding_logits in ((batch, True), (padded(batch), True), (padded(batch), False)):
        model.zero_grad()
        output = run(model, inputs, labels=inputs["labels"], padding_logits=padding_logits)
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.loss_dict, gradients))
    (losses, gradients), *others = results
    for other_losses, other_gradients in others:
        torch.testing.assert_close(other_losses, losses)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def test_caption_without_tokens(model: GlipForObjectDetection, batch: dict[str, Any]) -> None:
    nothing = {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}
    output = run(model, nothing, padding_logits=False)
    assert output.logits.isfinite().all() and output.box_deltas.isfinite().all()
