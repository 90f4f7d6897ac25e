"""An endless stream of pre-training batches: generated scenes and photographs, each with its own caption."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sdpt_ext.data.pretrain.examples import Example, ExampleSource
from sdpt_ext.data.shapes.vocabulary import COLOURS
from sdpt_ext.data.transforms import clip_corners, coco_to_corners
from sdpt_ext.models.glip.captions import build_caption
from sdpt_ext.models.glip.processing import GlipProcessor

_ASPECTS = ((1.0, 0.4), (4 / 3, 0.3), (3 / 4, 0.2), (3 / 2, 0.1))
"""Width over height of a batch, and how often it comes."""
_MIN_SIDE = 3.0
"""Boxes narrower than this many pixels are left out."""


@dataclass(frozen=True)
class StreamOptions:
    """Attributes:
    batch_size: images per batch; all of a batch have one size.
    photo_ratio: share of photographs, the rest are generated scenes.
    short_sides: short sides of the batches, drawn at random; None takes the processor's training scales.
    max_caption_tokens: longest caption, special tokens included; names are left out of a longer one.
    max_negatives: most names in a caption that are true of nothing in the picture.
    forgotten: share of the names of present things that half of the captions leave out, so that the model learns to
        look for nothing but what it is asked for.
    brightness: largest relative change of brightness and contrast.
    veiled: share of the pictures seen through coloured haze, as under water; never those whose names speak of colours.
    seed: fixes every batch together with its number.
    """

    batch_size: int = 8
    photo_ratio: float = 0.5
    short_sides: tuple[int, ...] | None = None
    max_caption_tokens: int = 80
    max_negatives: int = 16
    forgotten: float = 0.3
    brightness: float = 0.18
    veiled: float = 0.0
    seed: int = 0


class PretrainStream(IterableDataset):
    """Batches number ``start_step``, ``start_step + 1``, ...; batch n depends on the seed and n alone.

    So a run resumes where it stopped, and the number of workers changes nothing.

    Args:
        processor: gives tokenizer, training scales and normalisation.
        scenes, photographs: the two sources; without photographs all images are generated.
    """

    def __init__(
        self,
        processor: GlipProcessor,
        scenes: ExampleSource,
        photographs: ExampleSource | None = None,
        options: StreamOptions | None = None,
        start_step: int = 0,
    ) -> None:
        self.processor = processor
        self.scenes = scenes
        self.photographs = photographs
        self.options = options or StreamOptions()
        self.start_step = start_step
        self._token_counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in itertools.count(self.start_step + first, step):
            yield self._packed_batch(number)

    def batch(self, number: int) -> dict[str, Any]:
        """Model inputs of one batch: pixel_values, input_ids, attention_mask, labels."""
        return _unpack(self._packed_batch(number))

    def loader(self, num_workers: int = 2, prefetch: int = 4) -> Iterator[dict[str, Any]]:
        """Endless iterator over the model inputs of successive batches, made by ``num_workers`` processes."""
        prefetch_factor = prefetch if num_workers else None
        loader = DataLoader(self, batch_size=None, num_workers=num_workers, prefetch_factor=prefetch_factor)
        return map(_unpack, loader)

    def _packed_batch(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.options.seed, number])
        size = self._draw_size(rng)
        examples = [self._draw_example(size, rng) for _ in range(self.options.batch_size)]
        names = [self._caption_names(example, rng) for example in examples]
        text = self.processor.encode_captions([build_caption(group) for group in names])
        boxes, rows = _targets(examples, names, text["label_to_tokens"], text["input_ids"].shape[1])
        return {
            "pixel_values": self._pixels(examples, rng),
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "boxes": torch.cat(boxes),
            "positive_map": torch.cat(rows),
            "counts": [len(group) for group in boxes],
        }

    def _draw_size(self, rng: np.random.Generator) -> tuple[int, int]:
        """(width, height) of the batch, multiples of the padding divisor."""
        config = self.processor.config
        divisor = config.size_divisor
        short = int(rng.choice(self.options.short_sides or config.train_shortest_edges))
        aspects, shares = zip(*_ASPECTS, strict=True)
        aspect = float(rng.choice(aspects, p=shares))
        width, height = (short * aspect, short) if aspect >= 1 else (short, short / aspect)
        return round(width / divisor) * divisor, round(height / divisor) * divisor

    def _draw_example(self, size: tuple[int, int], rng: np.random.Generator) -> Example:
        takes_photo = self.photographs is not None and rng.random() < self.options.photo_ratio
        source = self.photographs if takes_photo else self.scenes
        assert source is not None
        return source.draw(size, rng)

    def _caption_names(self, example: Example, rng: np.random.Generator) -> list[str]:
        """Names of the caption in random order: of things that are there, and a random number that are not."""
        present = _shuffled(sorted(set().union(*example.names)), rng)
        absent = _shuffled([name for name in dict.fromkeys(example.negatives) if name not in present], rng)
        if rng.random() < 0.5:
            present = [name for name in present if rng.random() >= self.options.forgotten]
        chosen = present + absent[: int(rng.integers(0, self.options.max_negatives + 1))]
        return _shuffled(self._within_budget(chosen or absent[:1] or sorted(set().union(*example.names))), rng)

    def _within_budget(self, names: Sequence[str]) -> list[str]:
        """The first names whose caption fits."""
        kept: list[str] = []
        budget = self.options.max_caption_tokens - 1
        for name in names:
            budget -= self._count_tokens(name) + 1
            if budget < 0 and kept:
                break
            kept.append(name)
        return kept

    def _count_tokens(self, name: str) -> int:
        if name not in self._token_counts:
            self._token_counts[name] = len(self.processor.tokenizer.tokenize(name))
        return self._token_counts[name]

    def _pixels(self, examples: Sequence[Example], rng: np.random.Generator) -> Tensor:
        """Normalised (B, 3, H, W); changes of light are folded into the normalisation."""
        config = self.processor.config
        means, stds = np.array(config.image_mean), np.array(config.image_std)
        width, height = examples[0].image.size
        pixels = np.empty((len(examples), 3, height, width), dtype=np.float32)
        for target, example in zip(pixels, examples, strict=True):
            gains, shifts = self._draw_light(example, means, rng)
            # Contrast changes around the mean, so that it does not change the brightness too.
            factors, offsets = gains / stds, (shifts - gains * means) / stds
            rgb = np.asarray(example.image)
            for channel in range(3):
                np.multiply(rgb[:, :, 2 - channel], np.float32(factors[channel]), out=target[channel])
                target[channel] += np.float32(offsets[channel])
        return torch.from_numpy(pixels)

    def _draw_light(
        self, example: Example, means: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gain and shift (3,) per channel of pixels that have lost their mean."""
        strength = self.options.brightness
        gain, shift = rng.uniform(1 - strength, 1 + strength), rng.uniform(-strength, strength) * 100
        gains, shifts = gain + rng.uniform(-0.04, 0.04, 3), np.full(3, shift)
        if rng.random() < self.options.veiled and not _speaks_of_colour(example):
            passing, veil = rng.uniform(0.3, 0.9, 3), rng.uniform(0, 255, 3)
            shifts += gains * (1 - passing) * (veil - means)
            gains *= passing
        return gains, shifts


def _speaks_of_colour(example: Example) -> bool:
    names = itertools.chain(example.negatives, *example.names)
    return any(word in COLOURS for name in names for word in name.split())


def _shuffled(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [names[index] for index in rng.permutation(len(names))]


def _targets(
    examples: Sequence[Example],
    names: Sequence[Sequence[str]],
    tokens_of_label: Sequence[dict[int, list[int]]],
    length: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Per image the boxes (G, 4) as inclusive corners, and 0/1 rows (G, T) on the tokens of every true name."""
    boxes, rows = [], []
    for example, caption, tokens in zip(examples, names, tokens_of_label, strict=True):
        label_of_name = {name: label for label, name in enumerate(caption, start=1)}
        row = torch.zeros(len(example.boxes), length)
        for index, true_names in enumerate(example.names):
            for name in true_names & label_of_name.keys():
                row[index, tokens[label_of_name[name]]] = 1.0
        corners, kept = clip_corners(
            coco_to_corners(torch.from_numpy(example.boxes)), example.image.height, example.image.width
        )
        kept &= (torch.from_numpy(example.boxes[:, 2:]) >= _MIN_SIDE).all(dim=1) & row.any(dim=1)
        boxes.append(corners[kept])
        rows.append(row[kept])
    return boxes, rows


def _unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """Labels per image; they travel between processes as one tensor, since each tensor costs a file handle."""
    counts = packed["counts"]
    pairs = zip(packed["boxes"].split(counts), packed["positive_map"].split(counts), strict=True)
    labels = [{"boxes": boxes, "positive_map": rows} for boxes, rows in pairs]
    return {key: packed[key] for key in ("pixel_values", "input_ids", "attention_mask")} | {"labels": labels}
