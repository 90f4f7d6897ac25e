from __future__ import annotations

import json

import pytest
import torch

from sdpt_ext.data.class_groups import class_groups
from sdpt_ext.models.glip.captions import (
    build_caption,
    clean_name,
    label_to_tokens,
    longest_caption,
    parse_names,
    positive_map,
    token_positions,
)
from sdpt_ext.models.glip.processing import GlipProcessor
from tests.golden import cases

GOLDEN = json.loads((cases.FOLDER / "i_captions.json").read_text())
CASES = [name for name in GOLDEN if not name.startswith("_")]


@pytest.fixture(scope="module")
def processor() -> GlipProcessor:
    return GlipProcessor.bert()


@pytest.mark.parametrize("case", CASES)
def test_caption_and_tokens_equal_the_official_ones(case: str, processor: GlipProcessor) -> None:
    golden = GOLDEN[case]
    caption = build_caption(golden["class_names"])
    assert caption.text == golden["test_caption"]
    assert [list(span) for span in caption.spans] == golden["char_spans_train"]

    encoded = processor.encode_captions([caption], padding="max_length")
    assert encoded["input_ids"][0].tolist() == golden["input_ids_padded_256"]
    assert int(encoded["attention_mask"].sum()) == golden["n_real_tokens"]
    expected = {int(label): tokens for label, tokens in golden["test_label_to_token_positions"].items()}
    assert encoded["label_to_tokens"][0] == expected

    labels = torch.arange(1, len(golden["class_names"]) + 1)
    rows = positive_map(encoded["label_to_tokens"][0], labels, 256)
    assert [row.nonzero().flatten().tolist() for row in rows] == golden["train_positive_map_nonzero"]
    assert set(rows.unique().tolist()) <= {0.0, 1.0}


def test_chunks_equal_the_official_ones(processor: GlipProcessor) -> None:
    golden = GOLDEN["_chunking"]
    names = golden["class_names"]
    for index, group in enumerate(class_groups(processor, names, golden["chunk_size"])):
        caption = build_caption([names[label - 1] for label in group])
        assert caption.text == golden["captions"][index]
        tokens = label_to_tokens(processor.tokenizer(caption.text).encodings[0], caption, group[0])
        assert tokens == {int(label): positions for label, positions in golden["label_to_tokens"][index].items()}


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [("a(b)c(d)e", "ae"), ("a_b", "a b"), ("a   b", "a  b"), ("CoW (crowd)", "CoW "), ("open(", "open(")],
)
def test_cleaning_is_greedy_and_single_pass(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_prompts_surround_the_span() -> None:
    prompts = [{"prefix": "a ", "name": "fish", "suffix": " in water"}, {"name": "ray"}]
    caption = build_caption(["x", "y"], prompts)
    assert caption.text == "a fish in water. ray"
    assert [caption.text[start:end] for start, end in caption.spans] == ["fish", "ray"]
    with pytest.raises(ValueError, match="2 caption prompts for 1 class"):
        build_caption(["x"], prompts)


class _Offsets:
    def __init__(self, tokens: dict[int, int]) -> None:
        self.tokens = tokens

    def char_to_token(self, char_pos: int) -> int | None:
        return self.tokens.get(char_pos)


def test_missing_characters_fall_back_to_two_neighbours() -> None:
    assert token_positions(_Offsets({4: 1, 7: 3}), [(2, 10)]) == [[1, 2, 3]]
    assert token_positions(_Offsets({5: 1, 7: 3}), [(2, 10)]) == [[]]
    assert token_positions(_Offsets({2: 1, 6: 3}), [(2, 10)]) == [[]]


def test_truncated_class_has_no_tokens_and_a_zero_row(processor: GlipProcessor) -> None:
    caption = build_caption(["raccoon", "traffic light"])
    encoding = processor.tokenizer(caption.text, truncation=True, max_length=5).encodings[0]
    tokens = label_to_tokens(encoding, caption)
    assert tokens == {1: [1, 2, 3]}
    assert positive_map(tokens, torch.tensor([2, 1]), 5).tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]


def test_user_text_is_split_at_dots() -> None:
    assert parse_names(" raccoon. traffic light .. ") == ["raccoon", "traffic light"]


@pytest.mark.parametrize(
    ("mask", "expected"), [([[1, 1, 0, 0], [1, 0, 0, 0]], 2), ([[0, 0, 1, 0]], 3), ([[0, 0]], 1), ([[1, 1]], 2)]
)
def test_longest_caption(mask: list[list[int]], expected: int) -> None:
    assert longest_caption(torch.tensor(mask)) == expected
