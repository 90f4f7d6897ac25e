"""A whole tuned detector through torch.compile without a break in its graph."""

from __future__ import annotations

import torch

import sdpt_ext
from sdpt_ext.models import GlipConfig, GlipForObjectDetection


@torch.no_grad()
def test_whole_detector() -> None:
    torch.manual_seed(0)
    config = GlipConfig.nano(num_head_layers=1)
    config.backbone_config.depths = (1, 1, 1, 1)
    model = sdpt_ext.tune(GlipForObjectDetection(config)).eval()
    ids = torch.randint(5, 2000, (1, 6))
    inputs = {"pixel_values": torch.randn(1, 3, 96, 128), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for name in ("logits", "box_deltas", "centerness"):
        torch.testing.assert_close(compiled(**inputs)[name], model(**inputs)[name], rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
