"""Captions of class names, and which tokens of a caption stand for which class.

GLIP detects by matching image locations with the tokens of one caption that lists every class:
"person. bicycle. traffic light". The rules here are those of the official code, odd ones included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SEPARATOR = ". "
_PARENTHESES = re.compile(r"\(.*\)")


class TokenOffsets(Protocol):
    """What is needed of a fast tokenizer's encoding."""

    def char_to_token(self, char_pos: int) -> int | None: ...


@dataclass(frozen=True)
class Caption:
    """A caption and the [start, end) characters of each class in it."""

    text: str
    spans: tuple[tuple[int, int], ...]


def clean_name(name: str) -> str:
    """Class name as it stands in a caption: no "(...)", no underscores, no double space. Nothing is stripped."""
    return _PARENTHESES.sub("", name).replace("_", " ").replace("  ", " ")


def build_caption(names: Sequence[str], prompts: Sequence[Mapping[str, str]] | None = None) -> Caption:
    """Joins the cleaned names with ". ".

    Args:
        names: class names, in the order of their labels.
        prompts: optional wording per class with keys "prefix", "name" and "suffix"; the span covers the name only.
    """
    if prompts is not None and len(prompts) != len(names):
        raise ValueError(f"{len(prompts)} caption prompts for {len(names)} class names; give one per class")
    text, spans = "", []
    for index, name in enumerate(names):
        words = prompts[index] if prompts is not None else {"name": clean_name(name)}
        text += words.get("prefix", "")
        spans.append((len(text), len(text) + len(words["name"])))
        text += words["name"] + words.get("suffix", "")
        if index < len(names) - 1:
            text += SEPARATOR
    return Caption(text, tuple(spans))


def parse_names(text: str) -> list[str]:
    """Class names of a user's "raccoon. traffic light." string; empty pieces are dropped."""
    return [piece.strip() for piece in text.split(".") if piece.strip()]


def token_positions(encoding: TokenOffsets, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Token positions of each span, first to last inclusive; empty where the span has no token.

    A character without a token (a space, or text cut off by truncation) is replaced by one of its two neighbours
    inside the span, as in the official code.
    """
    return [_positions_of_span(encoding, start, end) for start, end in spans]


def _positions_of_span(encoding: TokenOffsets, start: int, end: int) -> list[int]:
    first = _first_token(encoding, (start, start + 1, start + 2))
    last = _first_token(encoding, (end - 1, end - 2, end - 3))
    if first is None or last is None:
        return []
    return list(range(first, last + 1))


def _first_token(encoding: TokenOffsets, characters: Sequence[int]) -> int | None:
    tokens = (encoding.char_to_token(character) for character in characters if character >= 0)
    return next((token for token in tokens if token is not None), None)


def label_to_tokens(encoding: TokenOffsets, caption: Caption, first_label: int = 1) -> dict[int, list[int]]:
    """Label -> token positions, for the labels that have any; ``first_label`` is that of the caption's first class."""
    positions = token_positions(encoding, caption.spans)
    return {label: tokens for label, tokens in enumerate(positions, start=first_label) if tokens}


def positive_map(tokens_of_label: Mapping[int, Sequence[int]], class_labels: Tensor, length: int) -> Tensor:
    """0/1 rows (G, length) that mark the tokens of each box's class; a label without tokens gives a zero row.

    Args:
        tokens_of_label: 1-based label -> token positions.
        class_labels: (G,) 1-based labels.
        length: number of tokens T in ``input_ids``.
    """
    rows = torch.zeros(len(class_labels), length)
    for row, label in zip(rows, class_labels.tolist(), strict=True):
        row[[token for token in tokens_of_label.get(label, ()) if token < length]] = 1.0
    return rows


def longest_caption(attention_mask: Tensor) -> int:
    """Columns of a (B, T) mask up to the last that holds a real token of any caption; one if none does."""
    columns = (attention_mask != 0).any(0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 1


__all__ = ["Caption", "build_caption", "clean_name", "label_to_tokens", "longest_caption"]
__all__ += ["parse_names", "positive_map", "token_positions"]
