"""CoOp's context and GLIP's text prompt: where they act, how long captions may be, and what is remembered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdpt_ext.models import GlipForObjectDetection
from sdpt_ext.tuners import CoOpConfig, apply_method

from .test_adapter import nano
from .test_sdpt import batch

CLS, CONTEXT, CAPTION = [1], [7, 8], [20, 21, 22]


def with_context(count: int = len(CONTEXT)) -> GlipForObjectDetection:
    return apply_method(nano(), "coop", CoOpConfig(count))


def ids_and_mask(*tokens: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[*tokens] + [0] * padding])
    return ids, (torch.arange(ids.shape[1]) < len(tokens)).long()[None]


@pytest.mark.parametrize("padding", [0, 4])
@torch.no_grad()
def test_context_reads_as_words_behind_cls(padding: int) -> None:
    model = with_context()
    bert, words = model.text_encoder.model, model.text_encoder.model.get_input_embeddings().weight
    model.text_encoder.context.vectors.copy_(words[CONTEXT])
    hidden = model.text_encoder(*ids_and_mask(*CLS, *CAPTION, padding=padding))
    expected = bert(*ids_and_mask(*CLS, *CONTEXT, *CAPTION)).last_hidden_state
    kept = [0, *range(1 + len(CONTEXT), expected.shape[1])]
    assert hidden.shape[1] == 4 + padding
    torch.testing.assert_close(hidden[:, :4], expected[:, kept])


@torch.no_grad()
def test_padding_of_a_batch_is_hidden() -> None:
    encoder = with_context().text_encoder
    ids = torch.tensor([[1, 20, 21, 22], [1, 20, 0, 0]])
    together = encoder(ids, (ids > 0).long())
    torch.testing.assert_close(together[1:, :2], encoder(*ids_and_mask(1, 20)))


@torch.no_grad()
def test_context_needs_room_beside_the_real_tokens() -> None:
    """nano's table has 256 positions: captions that are padded to all of them leave room, full ones do not."""
    encoder = with_context(10).text_encoder
    assert encoder(*ids_and_mask(*[5] * 246, padding=10)).shape == (1, 256, 128)
    with pytest.raises(ValueError, match=r"247 tokens and 10 context vectors.* at most 256 together; use fewer"):
        encoder(*ids_and_mask(*[5] * 247, padding=9))


@torch.no_grad()
def test_text_prompt_adds_a_row_per_position() -> None:
    model = apply_method(nano(), "text_prompt")
    inputs = ids_and_mask(*CLS, *CAPTION)
    expected = model.text_encoder.model(*inputs).last_hidden_state
    model.text_encoder.prompt.table.normal_()
    assert torch.equal(model.text_encoder(*inputs), expected + model.text_encoder.prompt.table[:4])
    with pytest.raises(ValueError, match=r"captions of 257 tokens.* 256 positions"):
        model.text_encoder.prompt(torch.zeros(1, 257, 128))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[GlipForObjectDetection], list[int]]:
    """Counts the passes through BERT."""

    def count(model: GlipForObjectDetection) -> list[int]:
        calls, encode = [], model.text_encoder._encode
        monkeypatch.setattr(model.text_encoder, "_encode", lambda *inputs: calls.append(0) or encode(*inputs))
        return calls

    return count


@pytest.mark.parametrize(("method", "while_training"), [("text_prompt", 1), ("coop", 3)])
def test_captions_are_remembered_where_nothing_before_bert_trains(
    passes: Callable[[GlipForObjectDetection], list[int]], method: str, while_training: int
) -> None:
    model = apply_method(nano(), method)
    calls = passes(model)
    for _ in range(3):
        model.train()(**batch()).loss.backward()
    assert len(calls) == while_training
    calls.clear()
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            model(**batch())
    assert len(calls) == 1
