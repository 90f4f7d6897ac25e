"""The head's BERT layer (transformers' own) under the head's mask, against the official numbers."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from sdpt_ext.models.glip.head import additive_text_mask

from ...golden import cases


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["d1", "d2"])
def test_golden(name: str, dtype: torch.dtype, tolerance: float, attention: str) -> None:
    meta, arrays = cases.load(f"d_bertlayer_{name}")
    config = BertConfig()
    config._attn_implementation = attention
    layer = BertLayer(config)
    cases.fill_parameters(layer, "bertlayer.")
    hidden = cases.inputs(f"{name}.hidden", (meta["B"], meta["L"], 768), dtype).requires_grad_()
    mask = additive_text_mask(cases.text_mask(meta["real_tokens"], meta["L"]), dtype)
    output = layer.to(dtype).eval()(hidden, mask)
    (output * cases.cotangent(name, output)).sum().backward()
    cases.assert_close(output, arrays, "out", tolerance)
    cases.assert_close(hidden.grad, arrays, "grad_hidden", tolerance)
