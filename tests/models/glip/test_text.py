"""The text encoder: masks, padding and length; the numbers themselves are in test_oracle_full.py."""

from __future__ import annotations

import pytest
import torch

from sdpt_ext.models.glip.configuration import GlipConfig
from sdpt_ext.models.glip.text import GlipTextEncoder


@pytest.fixture
def encoder() -> GlipTextEncoder:
    torch.manual_seed(0)
    return GlipTextEncoder(GlipConfig.nano()).eval()


def test_parameter_count() -> None:
    with torch.device("meta"):
        encoder = GlipTextEncoder(GlipConfig.tiny())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 108_891_648


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_padding_changes_no_real_token(encoder: GlipTextEncoder, implementation: str) -> None:
    encoder.model.set_attn_implementation(implementation)
    input_ids = torch.randint(5, 2000, (2, 256))
    mask = torch.zeros(2, 256, dtype=torch.int64)
    mask[0, :9], mask[1, :6] = 1, 1
    padded = encoder(input_ids, mask)
    trimmed = encoder(input_ids[:, :9], mask[:, :9])
    assert padded.shape == (2, 256, 128)
    torch.testing.assert_close(padded[0, :9], trimmed[0])
    torch.testing.assert_close(padded[1, :6], trimmed[1, :6])


def test_too_long_a_caption_is_named(encoder: GlipTextEncoder) -> None:
    ids = torch.ones(1, 257, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"257 tokens per caption .* at most 256; split"):
        encoder(ids, ids)
