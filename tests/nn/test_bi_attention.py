"""The fusion block against the official GLIP and SDPT numbers, and the folded form against the textbook form."""

from __future__ import annotations

import pytest
import torch

from sdpt_ext.models.glip.head import flatten_levels, split_levels
from sdpt_ext.nn import BiAttentionBlock

from ..golden import cases
from ..ops.backends import BACKENDS as OPERATOR_BACKENDS

BACKENDS = ["eager", *OPERATOR_BACKENDS]
PRECISIONS = ((torch.float32, 1e-5), (torch.float64, 1e-6))


def official_block(dtype: torch.dtype, backend: str, prefix: str = "biattn.") -> BiAttentionBlock:
    block = BiAttentionBlock(256, 768, 2048, 8)
    cases.fill_parameters(block, prefix)
    block.backend = backend
    return block.to(dtype).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["a1", "a2", "a3"])
def test_golden(name: str, dtype: torch.dtype, tolerance: float, backend: str) -> None:
    meta, arrays = cases.load(f"a_biattention_{name}")
    block = official_block(dtype, backend)
    v = cases.inputs(f"{name}.v", (meta["B"], meta["N"], 256), dtype).requires_grad_()
    l = cases.inputs(f"{name}.l", (meta["B"], meta["L"], 768), dtype).requires_grad_()
    mask = cases.text_mask(meta["real_tokens"], meta["L"])
    out_v, out_l = block(v, l, mask)
    weighted = (out_v * cases.cotangent(f"{name}.v", out_v)).sum() + (out_l * cases.cotangent(f"{name}.l", out_l)).sum()
    weighted.backward()
    for key, value in {"out_v": out_v, "out_l": out_l, "grad_v": v.grad, "grad_l": l.grad}.items():
        cases.assert_close(value, arrays, key, tolerance)
    with torch.no_grad():
        delta_v = (out_v - block.layer_norm_v(v)) / block.gamma_v
        delta_l = (out_l - block.layer_norm_l(l)) / block.gamma_l
    cases.assert_close(delta_v, arrays, "delta_v", 2 * tolerance)
    cases.assert_close(delta_l, arrays, "delta_l", 2 * tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_levels(backend: str) -> None:
    meta, arrays = cases.load("a_biattention_levels_a5")
    levels = [cases.inputs(f"a5.q{i}", (meta["B"], 256, *size)) for i, size in enumerate(meta["sizes"])]
    l = cases.inputs("a5.l", (meta["B"], meta["L"], 768))
    block = official_block(torch.float32, backend)
    tokens, out_l = block(flatten_levels(levels), l, cases.text_mask(meta["real_tokens"], meta["L"]))
    for i, level in enumerate(split_levels(tokens, [tuple(size) for size in meta["sizes"]])):
        cases.assert_close(level, arrays, f"out_q{i}", 1e-5)
    cases.assert_close(out_l, arrays, "out_l", 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("visible", [0, 5], ids=["blind", "some"])
def test_inference_gives_what_training_sees(visible: int, backend: str) -> None:
    """Without gradients one pass normalises, attends and adds the residual."""
    block = official_block(torch.float64, backend)
    v, l, mask = torch.randn(2, 30, 256).double(), torch.randn(2, 9, 768).double(), torch.ones(2, 9).long()
    mask[1, visible:] = 0
    given = v.clone()
    expected = block(v, l, mask)
    with torch.no_grad():
        for actual, reference in zip(block(v, l, mask), expected, strict=True):
            torch.testing.assert_close(actual, reference.detach(), rtol=1e-10, atol=1e-10)
    assert torch.equal(v, given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hook_on_the_norm_is_called_at_rest_too(backend: str) -> None:
    block, calls = official_block(torch.float64, backend), []
    block.layer_norm_v.register_forward_hook(lambda *_: calls.append("normalised"))
    with torch.no_grad():
        block(torch.randn(1, 4, 256).double(), torch.randn(1, 3, 768).double())
    assert calls == ["normalised"]
