"""Whole fusion blocks through torch.compile without a break, through torch.export, and under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpt_ext import _library
from sdpt_ext.nn import BiAttentionBlock
from sdpt_ext.tuners import inverse_projection
from sdpt_ext.tuners.sdpt import PrototypeTokens, SDPTConfig

COMPILED = pytest.param(
    "ext",
    marks=pytest.mark.skipif(_library.missing_kernel("bi_attention", "cpu") is not None, reason="no compiled operator"),
)
BACKENDS = ["eager", "torch", COMPILED]
PROMPTS = {"zero-shot": None, "prompts": SDPTConfig(3), "gated": SDPTConfig(3, gate="zero")}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def fusion_block(backend: str, config: SDPTConfig | None = None) -> BiAttentionBlock:
    torch.manual_seed(0)
    block = BiAttentionBlock(16, 24, 64, 4, init_values=1.0)
    block.backend = backend
    if config is not None:
        block.prompt = PrototypeTokens(block.attn, config)
        if block.prompt.gate is not None:
            nn.init.normal_(block.prompt.gate)
    return block


def tokens(positions: int = 50, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    mask = (torch.arange(length) < torch.tensor([[length], [length - 3]])).long()
    return torch.randn(2, positions, 16, requires_grad=True), torch.randn(2, length, 24, requires_grad=True), mask


def outputs_and_gradients(block: Any, module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    outputs = block(*inputs)
    leaves = [tensor for tensor in (*inputs, *module.parameters()) if tensor.requires_grad]
    return [*outputs, *torch.autograd.grad(sum(out.sin().sum() for out in outputs), leaves)]


def assert_same_program(block: BiAttentionBlock, compiled: Any, inputs: tuple[Tensor, ...]) -> None:
    ours, expected = outputs_and_gradients(compiled, block, inputs), outputs_and_gradients(block, block, inputs)
    for actual, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_graph(backend: str, config: SDPTConfig | None) -> None:
    block = fusion_block(backend, config)
    assert_same_program(block, torch.compile(block, fullgraph=True, backend="aot_eager"), tokens())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", COMPILED])
def test_generated_code(backend: str) -> None:
    block = fusion_block(backend, SDPTConfig(3))
    assert_same_program(block, torch.compile(block, fullgraph=True), tokens())


@pytest.mark.parametrize("backend", ["torch", COMPILED])
def test_compiled_prompts_are_never_stale(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inverted: list[Tensor] = []
    compute = inverse_projection.pseudo_inverse
    monkeypatch.setattr(inverse_projection, "pseudo_inverse", lambda w: inverted.append(w) or compute(w))
    block = fusion_block(backend, SDPTConfig(3)).eval()
    inputs = tokens()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        outputs_and_gradients(compiled, block, inputs)
    assert len(inverted) == 2, "one inverse for the image side and one for the text side"
    for parameter in (block.prompt.prototype_tokens, block.attn.v_proj.weight, block.attn.out_v_proj.weight):
        with torch.no_grad():
            before = compiled(*inputs)
            parameter.mul_(1.5)
            after = compiled(*inputs)
            assert not torch.equal(before[0], after[0])
            for actual, expected in zip(after, block(*inputs)):
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_graph_without_gradients(backend: str) -> None:
    block = fusion_block(backend, SDPTConfig(3)).eval()
    compiled, inputs = torch.compile(block, fullgraph=True, backend="aot_eager"), tokens()
    for actual, expected in zip(compiled(*inputs), block(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", COMPILED])
def test_whole_graph_with_dropout(backend: str) -> None:
    """The seed is drawn while the program runs: every step drops other weights, the same for the same seed."""
    block = fusion_block(backend, SDPTConfig(3)).train()
    block.attn.dropout = 0.3
    compiled, inputs = torch.compile(block, fullgraph=True, backend="aot_eager"), tokens()
    steps = []
    for run in (compiled, block, compiled):
        torch.manual_seed(0)
        steps.append([outputs_and_gradients(run, block, inputs) for _ in range(2)])
    for first, second in steps:
        assert not torch.equal(first[0], second[0])
    for actual, expected in zip(steps[0], steps[1], strict=True):
        for value, reference in zip(actual, expected, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-4)
    assert torch.equal(steps[0][0][0], steps[2][0][0])


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_export(backend: str) -> None:
    block = fusion_block(backend, SDPTConfig(3)).eval()
    exported = torch.export.export(block, tokens()).module()
    other = tokens()
    for actual, expected in zip(exported(*other), block(*other)):
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", COMPILED])
def test_export_for_images_of_any_size(backend: str) -> None:
    """The form in plain PyTorch visits an image in as many chunks as it has, so its program is for one size."""
    block = fusion_block(backend).eval()
    shapes = ({1: torch.export.Dim("positions", min=2)}, None, None)
    exported = torch.export.export(block, tokens(), dynamic_shapes=shapes).module()
    other = tokens(positions=83)
    for actual, expected in zip(exported(*other), block(*other)):
        torch.testing.assert_close(actual, expected)


# ---- autocast ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str, config: SDPTConfig | None) -> None:
    """What the attention gives is in low precision, as of a linear layer; the block's residuals stay precise."""
    block, inputs = fusion_block(backend, config), tokens()
    exact = outputs_and_gradients(block, block, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        prompts = None if block.prompt is None else block.prompt(block.attn)
        v, l = block.layer_norm_v(inputs[0]), block.layer_norm_l(inputs[1])
        assert {part.dtype for part in block.attn.attend(v, l, inputs[2], prompts, backend)} == {torch.bfloat16}
        low = outputs_and_gradients(block, block, inputs)
    for actual, expected in zip(low, exact, strict=True):
        assert actual.dtype == expected.dtype == torch.float32
        assert (actual - expected).norm() <= 0.05 * expected.norm() + 1e-3
    assert not torch.equal(low[0], exact[0])


@pytest.mark.parametrize("backend", ["torch", COMPILED])
def test_compiled_under_autocast(backend: str) -> None:
    block, inputs = fusion_block(backend, SDPTConfig(3)), tokens()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        pairs = zip(outputs_and_gradients(compiled, block, inputs), outputs_and_gradients(block, block, inputs))
        for actual, expected in pairs:
            assert actual.dtype == expected.dtype
            assert (actual - expected).norm() <= 0.02 * expected.norm() + 1e-3
