"""Images and class names to the tensors of GLIP, and its outputs back to boxes on the images."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Encoding
from torch import Tensor
from transformers import BatchFeature, BertTokenizer, PreTrainedTokenizerBase
from transformers.models.bert.tokenization_bert import load_vocab
from transformers.utils import cached_file

from sdpt_ext.assets import BERT_VOCABULARY, NANO_VOCABULARY
from sdpt_ext.data import transforms
from sdpt_ext.data.atomic import write_json, write_text
from sdpt_ext.models.glip.anchors import level_anchors
from sdpt_ext.models.glip.captions import (
    Caption,
    build_caption,
    label_to_tokens,
    parse_names,
    positive_map,
    token_positions,
)
from sdpt_ext.models.glip.post_processing import post_process_detections

logger = logging.getLogger(__name__)

CONFIG_NAME = "processor_config.json"
VOCABULARY_NAME = "vocab.txt"

ImageInput = Image.Image | np.ndarray | str | Path


@dataclass(frozen=True)
class ProcessorConfig:
    """Numbers of a processor; the defaults are those of GLIP-T and GLIP-L.

    Attributes:
        shortest_edge, longest_edge: the image is resized so that its short side has the first length, unless its long
            side would pass the second.
        train_shortest_edges: short sides that training draws from.
        image_mean, image_std: per channel, blue green red, on the 0-255 scale.
        size_divisor: batches are padded to a multiple of it.
        max_text_tokens: longest caption, special tokens included.
        anchor_sizes, anchor_strides: as in the model's configuration.
    """

    shortest_edge: int = 800
    longest_edge: int = 1333
    train_shortest_edges: tuple[int, ...] = (480, 560, 640, 720, 800)
    image_mean: tuple[float, ...] = transforms.PIXEL_MEAN
    image_std: tuple[float, ...] = transforms.PIXEL_STD
    size_divisor: int = transforms.SIZE_DIVISOR
    max_text_tokens: int = 256
    anchor_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    anchor_strides: tuple[int, ...] = (8, 16, 32, 64, 128)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProcessorConfig:
        """From JSON values; raises ValueError naming keys that are not attributes."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown keys {unknown}; known are {sorted(field.name for field in fields(cls))}")
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ProcessorConfig:
        """From a processor_config.json; raises ValueError naming the file if it is none."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} is not a processor configuration: {error}") from error

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes processor_config.json."""
        write_json(Path(directory) / CONFIG_NAME, asdict(self))

    def with_image_size(self, shortest_edge: int) -> ProcessorConfig:
        """The same with another short side; the other lengths change in proportion."""
        factor = shortest_edge / self.shortest_edge
        return replace(
            self,
            shortest_edge=shortest_edge,
            longest_edge=round(self.longest_edge * factor),
            train_shortest_edges=tuple(round(edge * factor) for edge in self.train_shortest_edges),
        )


NANO_CONFIG = ProcessorConfig(
    shortest_edge=256,
    longest_edge=384,
    train_shortest_edges=(192, 224, 256, 288, 320),
    anchor_sizes=(32, 64, 128, 256, 512),
)


class GlipProcessor:
    """Prepares images, captions and boxes for ``GlipForObjectDetection`` and reads its outputs.

    Example:
        >>> processor = GlipProcessor.nano()
        >>> inputs = processor(images=image, text=["raccoon", "traffic light"])

    Attributes:
        model_input_names: the tensors of a batch that the model takes.
    """

    model_input_names: tuple[str, ...] = ("pixel_values", "input_ids", "attention_mask")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ProcessorConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self.config = config or ProcessorConfig()
        self._warned_names: set[str] = set()

    @classmethod
    def bert(cls) -> GlipProcessor:
        """For GLIP-T and GLIP-L: BERT's uncased vocabulary, images of 800 x 1333."""
        return cls(_tokenizer(BERT_VOCABULARY))

    @classmethod
    def nano(cls) -> GlipProcessor:
        """For the nano model: its own 2048 word pieces, images of 256 x 384."""
        return cls(_tokenizer(NANO_VOCABULARY), NANO_CONFIG)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **hub_options: Any) -> GlipProcessor:
        """From a folder written by ``save_pretrained`` or a repository of the Hugging Face hub."""
        config_file = Path(_resolve_file(name_or_path, CONFIG_NAME, hub_options))
        vocabulary = Path(_resolve_file(name_or_path, VOCABULARY_NAME, hub_options))
        return cls(_tokenizer(vocabulary), ProcessorConfig.from_file(config_file))

    def save_pretrained(self, directory: str | os.PathLike[str], **_: Any) -> None:
        """Writes processor_config.json and vocab.txt."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        write_text(Path(directory) / VOCABULARY_NAME, "".join(f"{piece}\n" for piece, _ in vocabulary))
        self.config.save(directory)

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        annotations: Sequence[Mapping[str, Any]] | None = None,
        padding: str = "longest",
        return_tensors: str = "pt",
        shortest_edges: Sequence[int] | None = None,
        flips: Sequence[bool] | None = None,
    ) -> BatchFeature:
        """Model inputs of a batch.

        Args:
            images: pictures, arrays (H, W, 3) uint8 or files.
            text: class names; one list, or one "raccoon. fox" string, for all images, or one list per image.
            annotations: per image "boxes" (G, 4) COCO xywh in original pixels, "class_labels" (G,) 1-based positions
                in the caption, and optionally "iscrowd" (G,): crowds are left out.
            padding: "longest" caption of the batch, or "max_length".
            shortest_edges: per image, in place of the configured short side.
            flips: per image, whether to mirror it with its boxes.

        Returns:
            pixel_values (B, 3, H, W), image_sizes (B, 2) of the unpadded resized images and original_sizes (B, 2), as
            (height, width); input_ids and attention_mask (B, T); label_to_tokens, per image label -> token positions;
            with annotations also labels, per image "boxes" (G, 4) inclusive corners in resized pixels, "class_labels"
            (G,) and "positive_map" (G, T).

        Raises:
            ValueError: a caption is longer than ``max_text_tokens``, or the lists differ in length.
        """
        if return_tensors != "pt":
            raise ValueError(f"only PyTorch tensors are made (return_tensors='pt'), got {return_tensors!r}")
        batch: dict[str, Any] = {}
        if images is not None:
            pictures = [transforms.as_rgb(image) for image in _as_list(images)]
            batch |= self._process_images(pictures, shortest_edges, flips)
        if text is not None:
            batch |= self._process_text(
                _names_per_image(text, len(batch["original_sizes"]) if batch else None), padding
            )
        if annotations is not None:
            if images is None or text is None:
                raise ValueError("annotations need the images and the text that they belong to")
            batch["labels"] = self._process_annotations(annotations, batch, flips)
        return BatchFeature(batch)

    def _process_images(
        self, pictures: list[Image.Image], shortest_edges: Sequence[int] | None, flips: Sequence[bool] | None
    ) -> dict[str, Tensor]:
        config = self.config
        edges = shortest_edges or [config.shortest_edge] * len(pictures)
        tensors = []
        for picture, edge, flip in zip(pictures, edges, flips or [False] * len(pictures), strict=True):
            size = transforms.resized_size(*picture.size, edge, config.longest_edge)
            tensor = transforms.to_tensor(transforms.resize(picture, *size), config.image_mean, config.image_std)
            tensors.append(tensor.flip(2) if flip else tensor)
        return {
            "pixel_values": transforms.pad_batch(tensors, config.size_divisor),
            "image_sizes": torch.tensor([tensor.shape[1:] for tensor in tensors]),
            "original_sizes": torch.tensor([picture.size[::-1] for picture in pictures]),
        }

    def _process_text(self, names: Sequence[Sequence[str]], padding: str) -> dict[str, Any]:
        # One caption is often shared by the whole batch.
        captions = {tuple(group): self.build_caption(group) for group in names}
        return self.encode_captions([captions[tuple(group)] for group in names], padding)

    def build_caption(self, names: Sequence[str]) -> Caption:
        """The caption that asks for some classes."""
        return build_caption(names)

    def encode_captions(self, captions: Sequence[Caption], padding: str = "longest") -> dict[str, Any]:
        """input_ids and attention_mask (B, T), and label_to_tokens per caption."""
        encoded = self.tokenizer(
            [caption.text for caption in captions],
            padding=padding,
            max_length=self.config.max_text_tokens if padding == "max_length" else None,
        )
        for caption, encoding in zip(captions, encoded.encodings, strict=True):
            self._check_length(caption, sum(encoding.attention_mask))
            self._warn_about_unknown(caption, encoding)
        return {
            "input_ids": torch.tensor(encoded["input_ids"]),
            "attention_mask": torch.tensor(encoded["attention_mask"]),
            "label_to_tokens": [
                label_to_tokens(encoding, caption)
                for caption, encoding in zip(captions, encoded.encodings, strict=True)
            ],
        }

    def count_tokens(self, names: Sequence[str]) -> int:
        """Tokens of the caption of these names, special tokens included."""
        # Quiet: whether there are too many is for the caller to judge.
        return len(self.tokenizer(self.build_caption(names).text, verbose=False)["input_ids"])

    def _check_length(self, caption: Caption, tokens: int) -> None:
        limit = self.config.max_text_tokens
        if tokens > limit:
            raise ValueError(
                f"the caption of {len(caption.spans)} class names has {tokens} tokens and the model reads {limit}: "
                f"split the classes in several groups (sdpt_ext.data.class_groups) or shorten their names; "
                f"the caption starts with {caption.text[:60]!r}"
            )

    def _warn_about_unknown(self, caption: Caption, encoding: Encoding) -> None:
        if self.tokenizer.unk_token_id not in encoding.ids:
            return
        for (start, end), tokens in zip(caption.spans, token_positions(encoding, caption.spans), strict=True):
            name = caption.text[start:end]
            unreadable = any(encoding.ids[token] == self.tokenizer.unk_token_id for token in tokens)
            if unreadable and name not in self._warned_names:
                self._warned_names.add(name)
                logger.warning("the vocabulary can't spell the class name %r; write it in plain English", name)

    def _process_annotations(
        self, annotations: Sequence[Mapping[str, Any]], batch: Mapping[str, Any], flips: Sequence[bool] | None
    ) -> list[dict[str, Tensor]]:
        length = batch["input_ids"].shape[1]
        sizes = zip(batch["original_sizes"].tolist(), batch["image_sizes"].tolist(), strict=True)
        labels = []
        for annotation, tokens, (original, resized), flip in zip(
            annotations, batch["label_to_tokens"], sizes, flips or [False] * len(annotations), strict=True
        ):
            boxes, classes = _network_boxes(annotation, original, resized, flip)
            labels.append(
                {"boxes": boxes, "class_labels": classes, "positive_map": positive_map(tokens, classes, length)}
            )
        return labels

    def post_process_object_detection(
        self,
        outputs: Any,
        label_to_tokens: Sequence[Mapping[int, Sequence[int]]],
        image_sizes: Tensor | Sequence[tuple[int, int]],
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.05,
        **options: Any,
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, best first: "scores" (D,), 1-based "labels" (D,), "boxes" (D, 4) xyxy.

        Args:
            outputs: of the model: logits, box_deltas, centerness, level_sizes.
            label_to_tokens, image_sizes: as this processor made them.
            target_sizes: original (height, width) per image, for boxes in original pixels; None keeps resized pixels.
            threshold: lowest class score, before the centerness.
            options: passed on to ``post_process_detections``: pre_nms_top_n, nms_threshold, max_detections.
        """
        config, sizes = self.config, _as_pairs(image_sizes)
        anchors = level_anchors(
            outputs.level_sizes, config.anchor_strides, config.anchor_sizes, device=outputs.logits.device
        )
        detections = post_process_detections(
            outputs.logits,
            outputs.box_deltas,
            outputs.centerness,
            anchors,
            label_to_tokens,
            sizes,
            score_threshold=threshold,
            **options,
        )
        if target_sizes is not None:
            for found, size, target in zip(detections, sizes, _as_pairs(target_sizes), strict=True):
                found["boxes"] = transforms.scale_boxes(found["boxes"], size, target)
        return detections


def _network_boxes(
    annotation: Mapping[str, Any], original: Sequence[int], resized: Sequence[int], flip: bool
) -> tuple[Tensor, Tensor]:
    boxes = torch.as_tensor(annotation["boxes"], dtype=torch.float32).reshape(-1, 4)
    classes = torch.as_tensor(annotation["class_labels"], dtype=torch.int64).reshape(-1)
    crowd = torch.as_tensor(annotation.get("iscrowd", torch.zeros(len(boxes)))).reshape(-1).bool()
    boxes, visible = transforms.clip_corners(transforms.coco_to_corners(boxes), original[0], original[1])
    kept = visible & ~crowd
    boxes = transforms.scale_boxes(boxes[kept], (original[0], original[1]), (resized[0], resized[1]))
    return transforms.flip_boxes(boxes, resized[1]) if flip else boxes, classes[kept]


def _names_per_image(
    text: str | Sequence[str] | Sequence[Sequence[str]], images: int | None
) -> Sequence[Sequence[str]]:
    names: Any = parse_names(text) if isinstance(text, str) else list(text)
    if not names:
        raise ValueError("no class names given; pass at least one, for example text=['raccoon']")
    if isinstance(names[0], str):
        return [names] * (images or 1)
    if images is not None and len(names) != images:
        raise ValueError(f"{len(names)} lists of class names for {images} images")
    return names


def _as_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def _as_pairs(sizes: Tensor | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(height), int(width)) for height, width in rows]


def _tokenizer(vocabulary: Path) -> BertTokenizer:
    return BertTokenizer(vocab=dict(load_vocab(str(vocabulary))), do_lower_case=True)


def _resolve_file(name_or_path: str | os.PathLike[str], name: str, hub_options: Mapping[str, Any]) -> str:
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; was it written by GlipProcessor.save_pretrained?")
        return str(folder / name)
    return str(cached_file(str(name_or_path), name, **hub_options))


__all__ = ["GlipProcessor", "ProcessorConfig"]
