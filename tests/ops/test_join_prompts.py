"""Prompts that are mapped and joined to a text, against the definition, and in a fusion layer that trains."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpt_ext import _library
from sdpt_ext.nn import BiAttentionBlock
from sdpt_ext.ops.join_prompts import join_prompts
from sdpt_ext.tuners import sdpt

from .backends import DEVICE, SIMULATED

needs_kernel = pytest.mark.skipif(
    not _library.has_kernel("join_prompts", torch.device(DEVICE).type), reason="no kernel for this device"
)
BACKENDS = ["ext"] if SIMULATED else ["torch", pytest.param("ext", marks=needs_kernel)]
# (B, H, L, D, K, E)
SIZES = [
    (1, 1, 1, 8, 1, 8),
    (2, 3, 5, 16, 10, 40),
    (2, 2, 7, 23, 17, 33),
    (1, 8, 20, 32, 10, 256),
    (3, 2, 0, 8, 4, 130),
    (2, 2, 3, 8, 0, 16),
    (0, 2, 3, 8, 4, 16),
]
HALF = (torch.bfloat16, torch.float16)


def inputs(
    sizes: tuple[int, ...], dtype: torch.dtype = torch.float64, token_dtype: torch.dtype | None = None
) -> list[Tensor]:
    batch, heads, text, width, count, depth = sizes
    outputs = width + heads * (2 * width + 1)
    generator = torch.Generator().manual_seed(sum(sizes))

    def draw(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE, dtype)

    rows = [draw(dtype, batch, heads, text, *last) for last in ((width,), (), (width,))]
    return [*rows, *(draw(token_dtype or dtype, *shape) for shape in ((count, depth), (outputs, depth), (outputs,)))]


def by_definition(
    keys: Tensor, key_bias: Tensor, values: Tensor, tokens: Tensor, weight: Tensor, offset: Tensor
) -> list[Tensor]:
    """Prompt by prompt and head by head."""
    batch, heads, text, width = keys.shape
    blank = [rows.new_zeros(batch, heads, len(tokens), *rows.shape[3:]) for rows in (keys, key_bias, values)]
    joined = [torch.cat(pair, 2) for pair in zip((keys, key_bias, values), blank)]
    image = []
    for k, token in enumerate(tokens):
        outputs = weight @ token + offset
        image.append(outputs[:width])
        for head in range(heads):
            start = width + head * width
            joined[0][:, head, text + k] = outputs[start : start + width]
            joined[1][:, head, text + k] = outputs[width + heads * width + head]
            start = width + heads * width + heads + head * width
            joined[2][:, head, text + k] = outputs[start : start + width]
    return [*joined, torch.stack(image) if image else keys.new_empty(0, width)]


def with_gradients(tensors: list[Tensor], backend: str) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:4]]
    outputs = join_prompts(*leaves, *tensors[4:], backend=backend)
    weights = [torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape) for out in outputs]
    loss = sum((out.to(torch.promote_types(out.dtype, torch.float32)) * w).sum() for out, w in zip(outputs, weights))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_definition(sizes: tuple[int, ...], backend: str) -> None:
    tensors = inputs(sizes)
    for ours, expected in zip(join_prompts(*tensors, backend=backend), by_definition(*tensors), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_finite_differences(backend: str) -> None:
    tensors = inputs((2, 2, 3, 5, 11, 19))
    leaves = [tensor.requires_grad_() for tensor in tensors[:4]]
    assert torch.autograd.gradcheck(lambda *rows: join_prompts(*rows, *tensors[4:], backend=backend), leaves)


@needs_kernel
@pytest.mark.parametrize("sizes", SIZES[1:4])
@pytest.mark.parametrize(
    ("dtype", "token_dtype"), [(torch.float32, torch.float32), *itertools.product(HALF, (None, torch.float32))]
)
def test_precision(sizes: tuple[int, ...], dtype: torch.dtype, token_dtype: torch.dtype | None) -> None:
    """No further from float64 than twice what plain PyTorch is in the same precision."""
    tensors = inputs(sizes, dtype, token_dtype)
    exact = with_gradients([tensor.double() for tensor in tensors], "torch")
    plain, ours = with_gradients(tensors, "torch"), with_gradients(tensors, "ext")
    floor = torch.finfo(dtype).eps
    for got, reference, right in zip(ours, plain, exact, strict=True):
        assert got.dtype == reference.dtype and got.shape == right.shape
        if got.numel():
            scale = right.abs().max()
            error, allowed = (got - right).abs().max(), 2 * (reference - right).abs().max()
            assert error <= allowed + floor * scale / 4


@needs_kernel
def test_is_deterministic_and_takes_what_is_not_contiguous() -> None:
    tensors = inputs((2, 3, 5, 16, 10, 40), torch.float32)
    strided = [tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat(2, 1).mT[:, 0] for tensor in tensors]
    assert not strided[0].is_contiguous() and not strided[4].is_contiguous()
    first, second = with_gradients(tensors, "ext"), with_gradients(strided, "ext")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_kernel
def test_operator_keeps_the_rules_of_torch() -> None:
    tensors = inputs((2, 2, 3, 8, 4, 16), torch.float32)
    leaves = [tensor.requires_grad_() for tensor in tensors[:4]]
    torch.library.opcheck(torch.ops.sdpt_ext.join_prompts, (*leaves, *tensors[4:]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_round_the_map(backend: str) -> None:
    tensors = inputs((2, 3, 5, 16, 10, 40), torch.float32)
    expected = join_prompts(*tensors, backend=backend)
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(join_prompts(*tensors, backend=backend), expected))


@pytest.mark.parametrize(
    ("index", "cut"), [(1, lambda t: t[:, :1]), (2, lambda t: t[..., :4]), (4, lambda t: t[1:]), (5, lambda t: t[1:])]
)
def test_sizes_that_do_not_fit_are_named(index: int, cut: Any) -> None:
    tensors = inputs((2, 2, 3, 8, 4, 16))
    tensors[index] = cut(tensors[index])
    name = ("keys", "key_bias", "values", "tokens", "weight", "offset")[index]
    with pytest.raises(ValueError, match=f"join_prompts: {name} must be"):
        join_prompts(*tensors)


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="backend='cuda': choose one of"):
        join_prompts(*inputs(SIZES[0]), backend="cuda")


def test_missing_kernel_is_named() -> None:
    if _library.has_kernel("join_prompts", torch.device(DEVICE).type):
        pytest.skip("there is a kernel")
    with pytest.raises(RuntimeError, match="join_prompts"):
        join_prompts(*inputs(SIZES[0]), backend="ext")


# ---- in a fusion layer ----------------------------------------------------------------------------------------


def trained(block: BiAttentionBlock, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    v, l = (
        torch.randn(2, *shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE, dtype)
        for shape in ((30, 16), (7, 24))
    )
    mask = (torch.arange(7) < torch.tensor([[7], [4]])).long()
    outputs = block(v, l, mask)
    leaves = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return [*outputs, *torch.autograd.grad(sum(out.sin().sum() for out in outputs), leaves)]


@pytest.mark.parametrize("form", ["auto", "eager"])
@pytest.mark.parametrize("gate", [None, "zero"])
def test_layer_that_maps_while_it_joins(gate: Any, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if SIMULATED else torch.float64
    block = BiAttentionBlock(16, 24, 64, 4, init_values=1.0).to(DEVICE, dtype).requires_grad_(False)
    block.prompt, block.backend = sdpt.PrototypeTokens(block.attn, sdpt.SDPTConfig(3, gate=gate)), form
    if gate:
        torch.nn.init.normal_(block.prompt.gate)
    monkeypatch.setattr(sdpt, "joins_compiled", lambda tokens: False)
    expected = trained(block, dtype)
    monkeypatch.setattr(sdpt, "joins_compiled", lambda tokens: True)
    tolerance = 1e-4 if SIMULATED else 1e-10
    for ours, right in zip(trained(block, dtype), expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=tolerance, atol=tolerance)


def test_map_follows_the_weights() -> None:
    torch.manual_seed(0)
    block = BiAttentionBlock(16, 24, 64, 4, init_values=1.0).to(DEVICE).double().requires_grad_(False)
    block.prompt = sdpt.PrototypeTokens(block.attn, sdpt.SDPTConfig(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpt, "joins_compiled", lambda tokens: True)
        made: list[int] = []
        compute = sdpt.prompt_map
        patch.setattr(sdpt, "prompt_map", lambda attention: made.append(1) or compute(attention))
        before = trained(block, torch.float64)
        assert torch.equal(trained(block, torch.float64)[0], before[0]) and len(made) == 1
        block.attn.l_proj.weight.mul_(1.1)
        after = trained(block, torch.float64)
        assert len(made) == 2
        block.attn.v_proj.weight.requires_grad_()
        trained(block, torch.float64)
        assert len(made) == 2, "weights that train are no constants"
        block.attn.v_proj.weight.requires_grad_(False)
        patch.setattr(sdpt, "joins_compiled", lambda tokens: False)
        for ours, right in zip(after, trained(block, torch.float64), strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-10)
