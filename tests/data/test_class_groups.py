from __future__ import annotations

import random

import pytest

from sdpt_ext.data.class_groups import class_groups, draw_labels, fitting_names
from sdpt_ext.models.glip.processing import GlipProcessor

NAMES = [("star", "traffic light", "old red fire engine")[number % 3] + f" {number}" for number in range(150)]


@pytest.fixture(scope="module")
def processor() -> GlipProcessor:
    return GlipProcessor.nano()


def tokens(processor: GlipProcessor, labels: list[int] | range) -> int:
    return processor.count_tokens([NAMES[label - 1] for label in labels])


def test_groups_are_as_large_as_fit(processor: GlipProcessor) -> None:
    groups = class_groups(processor, NAMES)
    assert len(groups) > 2
    assert [label for group in groups for label in group] == list(range(1, len(NAMES) + 1))
    for group in groups:
        assert tokens(processor, group) <= 256
        assert group[-1] == len(NAMES) or tokens(processor, range(group[0], group[-1] + 2)) > 256
    assert class_groups(processor, ["star", "ring"]) == [range(1, 3)]


def test_groups_of_a_given_size(processor: GlipProcessor) -> None:
    groups = class_groups(processor, [f"n{number}" for number in range(1203)], 40)
    assert len(groups) == 31 and {len(group) for group in groups[:-1]} == {40} and len(groups[-1]) == 3


def test_what_does_not_fit_is_named(processor: GlipProcessor) -> None:
    with pytest.raises(ValueError, match=r"class name 'a a .* alone is longer than the 256 tokens.* shorten it"):
        class_groups(processor, ["star", "a " * 300])
    count = fitting_names(processor, NAMES, 256)
    with pytest.raises(ValueError, match=rf"--classes_per_caption 120 is too many: .*'star 0'.*; {count} of these"):
        class_groups(processor, NAMES, 120)


def test_a_drawn_caption_holds_the_image_and_is_full(processor: GlipProcessor) -> None:
    drawn = draw_labels(processor, NAMES, [7, 3, 7], range(1, 151), random.Random(0))
    assert {3, 7} < set(drawn) and len(set(drawn)) == len(drawn)
    longest = max(tokens(processor, [label]) for label in range(1, 151))
    assert 256 - longest < tokens(processor, drawn) < 256, "full but for the place that GLIP's loss keeps"
    assert drawn != sorted(drawn)
    assert drawn == draw_labels(processor, NAMES, [7, 3], range(1, 151), random.Random(0))
    assert drawn != draw_labels(processor, NAMES, [7, 3], range(1, 151), random.Random(1))


def test_a_drawn_caption_is_never_full_to_the_last_token(processor: GlipProcessor) -> None:
    lengths = {tokens(processor, draw_labels(processor, NAMES, [], range(1, 151), random.Random(s))) for s in range(30)}
    assert max(lengths) == 255


def test_only_allowed_labels_are_drawn(processor: GlipProcessor) -> None:
    assert sorted(draw_labels(processor, NAMES, [2], [5, 2, 9], random.Random(0))) == [2, 5, 9]
    assert len(draw_labels(processor, NAMES, [2], [5, 9], random.Random(0), size=2)) == 2


def test_an_image_with_too_many_classes_keeps_a_random_part(processor: GlipProcessor) -> None:
    parts = [set(draw_labels(processor, NAMES, range(1, 101), [], random.Random(seed))) for seed in range(2)]
    assert parts[0] != parts[1] and all(20 < len(part) < 100 for part in parts)
