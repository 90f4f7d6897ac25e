"""Images and class names to the tensors of Grounding DINO, and its outputs back to boxes on the images.

The interface is that of :class:`~sdpt_ext.models.glip.processing.GlipProcessor`, so that one training loop, one
evaluation and one prediction serve both families of detectors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from sdpt_ext.data import transforms
from sdpt_ext.data.atomic import write_json

from .glip.captions import Caption, build_caption
from .glip.post_processing import class_averaging
from .glip.processing import GlipProcessor, ProcessorConfig

_IMAGE_PROCESSOR_NAME = "preprocessor_config.json"
# They part the names of a caption, wherever they stand.
_SEPARATORS = str.maketrans(".?", "  ")


class GroundingDinoDetectionProcessor(GlipProcessor):
    """Prepares images, captions and boxes for (MM) Grounding DINO of transformers and reads its outputs.

    Labels in and out count from 1 in the order of the names, as with GLIP; those of the model's own targets from 0.
    """

    model_input_names = ("pixel_values", "pixel_mask", "input_ids", "token_type_ids", "attention_mask")

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], max_text_tokens: int = 256, **hub_options: Any
    ) -> GroundingDinoDetectionProcessor:
        """From a folder or hub repository with a tokenizer and an image processor of transformers.

        Args:
            max_text_tokens: longest caption, ``max_text_len`` of the model's configuration.
        """
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub_options)
        values, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path, **hub_options)
        return cls(tokenizer, _config(values, max_text_tokens))

    def save_pretrained(self, directory: str | os.PathLike[str], **_: Any) -> None:
        """Writes the tokenizer's files and preprocessor_config.json, as transformers reads them."""
        self.tokenizer.save_pretrained(directory)
        config = self.config
        values = {
            "image_processor_type": "GroundingDinoImageProcessor",
            "size": {"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge},
            "image_mean": [mean / 255 for mean in reversed(config.image_mean)],
            "image_std": [std / 255 for std in reversed(config.image_std)],
        }
        write_json(Path(directory) / _IMAGE_PROCESSOR_NAME, values)

    def _process_images(
        self, pictures: list[Image.Image], shortest_edges: Sequence[int] | None, flips: Sequence[bool] | None
    ) -> dict[str, Tensor]:
        batch = super()._process_images(pictures, shortest_edges, flips)
        mask = torch.zeros(len(pictures), *batch["pixel_values"].shape[2:], dtype=torch.int64)
        for row, (height, width) in zip(mask, batch["image_sizes"].tolist(), strict=True):
            row[:height, :width] = 1
        return {**batch, "pixel_values": batch["pixel_values"].flip(1), "pixel_mask": mask}  # red comes first

    def build_caption(self, names: Sequence[str]) -> Caption:
        caption = build_caption([_plain(name) for name in names])
        return Caption(f"{caption.text}.", caption.spans)

    def encode_captions(self, captions: Sequence[Caption], padding: str = "longest") -> dict[str, Any]:
        """input_ids, token_type_ids and attention_mask (B, T), and label_to_tokens per caption."""
        encoded = super().encode_captions(captions, padding)
        return {**encoded, "token_type_ids": torch.zeros_like(encoded["input_ids"])}

    def _process_annotations(
        self, annotations: Sequence[Mapping[str, Any]], batch: Mapping[str, Any], flips: Sequence[bool] | None
    ) -> list[dict[str, Tensor]]:
        labels = super()._process_annotations(annotations, batch, flips)
        sizes = batch["image_sizes"].tolist()
        return [
            {"class_labels": label["class_labels"] - 1, "boxes": _relative_boxes(label["boxes"], *size)}
            for label, size in zip(labels, sizes, strict=True)
        ]

    def post_process_object_detection(  # type: ignore[override]  # there is no NMS to have options
        self,
        outputs: Any,
        label_to_tokens: Sequence[Mapping[int, Sequence[int]]],
        image_sizes: Tensor | Sequence[tuple[int, int]],
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.0,
        max_detections: int = 300,
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, best first: "scores" (D,), 1-based "labels" (D,), "boxes" (D, 4) inclusive xyxy.

        As in Grounding DINO's own evaluation the score of a class is the mean over its tokens, and the best boxes of an
        image count, however low they score.

        Args:
            outputs: of the model: logits (B, Q, T) and pred_boxes (B, Q, 4).
            label_to_tokens, image_sizes: as this processor made them.
            target_sizes: original (height, width) per image, for boxes in original pixels; None keeps resized pixels.
            threshold: lowest score.
            max_detections: boxes per image.
        """
        sizes = torch.as_tensor(image_sizes if target_sizes is None else target_sizes).tolist()
        detections = []
        for logits, boxes, tokens, size in zip(outputs.logits, outputs.pred_boxes, label_to_tokens, sizes, strict=True):
            labels, averaging = class_averaging(tokens, logits.float())
            scores = (logits.float().sigmoid() @ averaging).flatten()
            scores, best = scores.topk(min(max_detections, len(scores)))
            scores, best = scores[scores > threshold], best[scores > threshold]
            found = _corners(boxes.float()[best // len(labels)], *size)
            detections.append({"scores": scores, "labels": labels[best % len(labels)], "boxes": found})
        return detections


def _config(values: Mapping[str, Any], max_text_tokens: int) -> ProcessorConfig:
    """From the dictionary of an image processor of transformers: red first, numbers between 0 and 1."""
    config = ProcessorConfig(
        image_mean=tuple(255 * mean for mean in reversed(values.get("image_mean") or IMAGENET_DEFAULT_MEAN)),
        image_std=tuple(255 * std for std in reversed(values.get("image_std") or IMAGENET_DEFAULT_STD)),
        size_divisor=1,
        max_text_tokens=max_text_tokens,
    )
    size = values.get("size") or {}
    config = config.with_image_size(size.get("shortest_edge", config.shortest_edge))
    return replace(config, longest_edge=size.get("longest_edge", config.longest_edge))


def _plain(name: str) -> str:
    plain = " ".join(name.translate(_SEPARATORS).lower().split())
    if not plain:
        raise ValueError(f"the class name {name!r} has no letters; give it a name that can be read")
    return plain


def _relative_boxes(corners: Tensor, height: int, width: int) -> Tensor:
    """Inclusive corners in pixels -> centre and size as shares of the image."""
    start, end = corners[:, :2], corners[:, 2:] + 1
    return torch.cat([(start + end) / 2, end - start], 1) / corners.new_tensor([width, height, width, height])


def _corners(relative: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`_relative_boxes`, cut to the image."""
    size = relative.new_tensor([width, height])
    centre, extent = relative[:, :2] * size, relative[:, 2:] * size
    corners = torch.cat([centre - extent / 2, centre + extent / 2 - 1], 1)
    return transforms.clip_corners(corners, height, width)[0]


__all__ = ["GroundingDinoDetectionProcessor"]
