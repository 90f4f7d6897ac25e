"""SDPT's prompts against the official numbers, and what tuning may and may not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sdpt_ext
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.nn import BiAttentionBlock
from sdpt_ext.tuners.sdpt import PrototypeTokens, SDPTConfig, prompt_state

from ..golden import cases, fill

VARIANTS = {"official_mask0": "masked", "visible_mask1": "visible"}


def prompted_block(count: int, variant: str, backend: str, dtype: torch.dtype) -> BiAttentionBlock:
    block = BiAttentionBlock(256, 768, 2048, 8)
    cases.fill_parameters(block, "sdpt.")
    block.prompt = PrototypeTokens(block.attn, SDPTConfig(count, text_prompts=VARIANTS[variant]))
    with torch.no_grad():
        tokens = cases.tensor(fill.fill("sdpt.attn.cpt_input", (1, count, 2048)))[0]
        block.prompt.prototype_tokens.copy_(tokens)
    block.backend = backend
    return block.to(dtype).eval()


def weighted_sum(outputs: tuple[Tensor, Tensor], name: str) -> Tensor:
    return sum((out * cases.cotangent(f"{name}.{side}", out)).sum() for out, side in zip(outputs, "vl"))


@pytest.mark.parametrize("backend", ["eager", "torch"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 10, 120])
def test_golden(count: int, dtype: torch.dtype, variant: str, backend: str) -> None:
    name = f"b{count}"
    meta, arrays = cases.load(f"b_sdpt_{name}")
    block = prompted_block(count, variant, backend, dtype)
    mask = cases.text_mask(meta["real_tokens"], meta["L"])
    attention = block.attn.forward_eager if backend == "eager" else block.attn.forward_folded
    parts = {
        "attn": (name, lambda v, l: attention(v, l, mask, block.prompt(block.attn))),
        "block": (f"{name}blk", lambda v, l: block(v, l, mask)),
    }
    for part, (inputs, forward) in parts.items():
        block.zero_grad()
        v = cases.inputs(f"{inputs}.v", (1, meta["N"], 256), dtype).requires_grad_()
        l = cases.inputs(f"{inputs}.l", (1, meta["L"], 768), dtype).requires_grad_()
        outputs = forward(v, l)
        weighted_sum(outputs, inputs).backward()
        outputs_tolerance, gradient_tolerance = (2e-5, 5e-5) if dtype == torch.float32 else (1e-6, 1e-6)
        for key, value in zip(("out_v", "out_l"), outputs):
            cases.assert_close(value, arrays, f"{part}.{variant}.{key}", outputs_tolerance)
        prompt_grad = block.prompt.prototype_tokens.grad[None]
        for key, value in (("grad_v", v.grad), ("grad_l", l.grad), ("grad_cpt_input", prompt_grad)):
            cases.assert_close(value, arrays, f"{part}.{variant}.{key}", gradient_tolerance)
