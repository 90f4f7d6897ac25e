"""Adapters: where they stand and what they compute."""

from __future__ import annotations

import torch
from torch import nn

from sdpt_ext.tuners import BottleneckConfig, apply_method
from sdpt_ext.tuners.bottleneck import Bottleneck, BottleneckedLinear

from .test_adapter import nano


def test_bottlenecks_stand_behind_every_feed_forward_layer() -> None:
    model = apply_method(nano(), "adapter", BottleneckConfig(width=2))
    names = [name for name, module in model.named_modules() if isinstance(module, BottleneckedLinear)]
    swin = [name for name in names if name.startswith("backbone.") and name.endswith(".mlp.fc2")]
    bert = [name for name in names if name.startswith("text_encoder.") and name.endswith(".output.dense")]
    assert (len(swin), len(bert), len(names)) == (2 + 2 + 4 + 2, 2, 12)
    assert not any(".attention." in name for name in names)


def test_definition() -> None:
    layer = nn.Linear(6, 5).double()
    bottleneck, x = Bottleneck(layer, 3), torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.equal(bottleneck(x), x)
    nn.init.normal_(bottleneck.up.weight)
    nn.init.normal_(bottleneck.up.bias)
    expected = x + bottleneck.up(nn.GELU()(bottleneck.down(x)))
    torch.testing.assert_close(bottleneck(x), expected)
