"""The head's BERT layer against the official numbers, and its clamps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from sdpt_ext.models.glip.bert_layer import ClampedBertLayer

from ...golden import cases


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["d1", "d2"])
def test_golden(name: str, dtype: torch.dtype, tolerance: float) -> None:
    meta, arrays = cases.load(f"d_bertlayer_{name}")
    layer = ClampedBertLayer(BertConfig())
    cases.fill_parameters(layer, "bertlayer.")
    hidden = cases.inputs(f"{name}.hidden", (meta["B"], meta["L"], 768), dtype).requires_grad_()
    output = layer.to(dtype).eval()(hidden, cases.text_mask(meta["real_tokens"], meta["L"]))
    (output * cases.cotangent(name, output)).sum().backward()
    cases.assert_close(output, arrays, "out", tolerance)
    cases.assert_close(hidden.grad, arrays, "grad_hidden", tolerance)


def small_layer(layer_class: type[BertLayer] = ClampedBertLayer) -> BertLayer:
    config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, attn_implementation="eager")
    torch.manual_seed(0)
    return layer_class(config).double().eval()


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_ordinary_activations_are_those_of_transformers() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    additive = (mask == 0)[:, None, None].double() * torch.finfo(torch.float64).min
    torch.testing.assert_close(small_layer()(tokens(), mask), small_layer(BertLayer)(tokens(), additive))


def identity(layer: nn.Linear, scale: float = 1.0) -> None:
    layer.weight.copy_(scale * torch.eye(8))
    layer.bias.zero_()


@torch.no_grad()
@pytest.mark.parametrize("where", ["intermediate", "output", "norm"])
def test_feed_forward_clamps(where: str) -> None:
    """Beyond the limit, a hundred times more makes no difference; the sub-layer before has no limit."""
    outputs = []
    for scale in (1e9, 1e11):
        layer = small_layer()
        layer.attention.output.dense.weight.zero_()
        identity(layer.intermediate.dense, scale if where == "intermediate" else 1.0)
        identity(layer.output.dense, scale if where == "output" else 1.0)
        if where == "norm":
            layer.output.LayerNorm.weight.fill_(scale)
        outputs.append(layer(tokens(), torch.ones(2, 5)))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert (outputs[0].abs().amax() == 50_000.0) == (where == "norm")


@torch.no_grad()
def test_score_clamp() -> None:
    """Two keys whose scores lie beyond the limit share a query's attention."""
    layer = small_layer()
    attention = layer.attention.self
    for projection in (attention.query, attention.key, attention.value):
        identity(projection)
    hidden = torch.zeros(1, 3, 8, dtype=torch.float64)
    hidden[0, :, 0] = torch.tensor([1e4, 2e4, -1e4])
    attended = layer._attend(hidden, torch.ones(1, 3))
    torch.testing.assert_close(attended[0, 0, 0].item(), 1.5e4)
