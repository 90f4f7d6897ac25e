"""More classes than one caption holds: which of them are asked for together."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from sdpt_ext.models.glip.processing import GlipProcessor


def class_groups(processor: GlipProcessor, names: Sequence[str], size: int | None = None) -> list[range]:
    """Cuts the labels 1, 2, ... of some classes in consecutive groups of one caption each, as GLIP does at test time.

    Args:
        names: class names, in the order of their labels.
        size: classes of a group, the last one smaller; None for as few groups as the length of captions allows.

    Raises:
        ValueError: a name alone is too long for a caption, or ``size`` names are.
    """
    groups, start = [], 0
    while start < len(names):
        wanted = names[start:] if size is None else names[start : start + size]
        count = fitting_names(processor, wanted, processor.config.max_text_tokens)
        if count == 0 or (size is not None and count < len(wanted)):
            raise ValueError(_too_long(processor, wanted, count))
        groups.append(range(start + 1, start + 1 + count))
        start += count
    return groups


def fitting_names(processor: GlipProcessor, names: Sequence[str], limit: int) -> int:
    """How many of the first names a caption of ``limit`` tokens holds."""
    # A name has one token at least.
    counts = range(1, min(len(names), limit) + 1)
    return bisect_right(counts, limit, key=lambda count: processor.count_tokens(names[:count]))


def draw_labels(
    processor: GlipProcessor,
    names: Sequence[str],
    present: Iterable[int],
    absent: Iterable[int],
    generator: random.Random,
    size: int | None = None,
) -> list[int]:
    """Labels of a training caption in random order: those of an image, then others as long as there is room.

    As in GLIP's od_to_grounding.py: present classes that do not fit are left out at random.

    Args:
        names: class names, in the order of their labels.
        present: labels of the image's boxes.
        absent: labels that may stand in the caption although the image does not show them.
        size: largest number of classes; None for no limit but the caption's length.
    """
    shown = set(present)
    drawn = _shuffled(shown, generator) + _shuffled(set(absent) - shown, generator)
    drawn = drawn[:size]
    # In a full caption GLIP's loss takes the last token for "no object", and pulls it up on all of the background.
    limit = processor.config.max_text_tokens - 1
    return _shuffled(drawn[: fitting_names(processor, [names[label - 1] for label in drawn], limit)], generator)


def _shuffled(labels: Iterable[int], generator: random.Random) -> list[int]:
    ordered = sorted(labels)
    return generator.sample(ordered, len(ordered))


def _too_long(processor: GlipProcessor, names: Sequence[str], fitting: int) -> str:
    limit = processor.config.max_text_tokens
    if fitting == 0:
        return f"the class name {names[0]!r} alone is longer than the {limit} tokens that the model reads; shorten it"
    return (
        f"--classes_per_caption {len(names)} is too many: the caption from {names[0]!r} to {names[-1]!r} has "
        f"{processor.count_tokens(names)} tokens and the model reads {limit}; {fitting} of these names fit"
    )


__all__ = ["class_groups", "draw_labels", "fitting_names"]
