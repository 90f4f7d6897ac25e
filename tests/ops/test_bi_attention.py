"""Bi-directional attention on every backend against the formulas it stands for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdpt_ext import _library
from sdpt_ext.ops import bi_attention, folded_bi_attention
from sdpt_ext.ops.bi_attention import bi_attention_residual
from sdpt_ext.ops.dropout import TO_IMAGE, TO_TEXT, Dropout

from .backends import BACKENDS, DEVICE, needs_library

BATCH, HEADS, TOKENS, WIDTH, POSITIONS, PROMPTS = 2, 3, 7, 8, 11, 4


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    """Several chunks of the PyTorch path, the last one short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded_bi_attention, "_CHUNK_ROWS", 4)
        yield


def tensors(
    dtype: torch.dtype = torch.float64,
    batch: int = BATCH,
    positions: int = POSITIONS,
    heads: int = HEADS,
    tokens: int = TOKENS,
    width: int = WIDTH,
    prompts: int = PROMPTS,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE)

    bias = draw(batch, heads, tokens)
    bias[:1, :, tokens // 2 : tokens // 2 + 1] = -torch.inf
    rows = {
        "x": draw(batch, positions, width),
        "keys": draw(batch, heads, tokens, width) * (8 / width) ** 0.5,
        "values": draw(batch, heads, tokens, width),
        "prompts": draw(prompts, width),
    }
    return {**{name: row.to(dtype) for name, row in rows.items()}, "key_bias": bias.to(softmax_dtype(dtype))}


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def softmax(logits: Tensor) -> Tensor:
    """Zeros, with gradients of zero, where there is nothing to attend to."""
    blind = (logits == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(logits.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)


def textbook(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    prompts: Tensor | None = None,
    num_text: int | None = None,
    image_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, dropout = (keys.shape[0], keys.shape[1], keys.shape[2]), Dropout(dropout_p, seed)
    rows = x if prompts is None else torch.cat([x, prompts.expand(len(x), -1, -1)], 1)
    every_row = range(rows.shape[1])
    keep_y, keep_u = (dropout.factors(way, shape, every_row, x) for way in (TO_IMAGE, TO_TEXT))
    scores = torch.einsum("bnd,bhtd->bhnt", x, keys) + key_bias[:, :, None].to(x.dtype)
    to_text = softmax(scores) * keep_y[..., : x.shape[1]].mT
    y = torch.einsum("bhnt,bhtd->bnd", to_text, values)
    logits = torch.einsum("bhtd,bnd->bhtn", keys[:, :, :num_text], rows)
    if image_mask is not None:
        hidden = torch.nn.functional.pad(~image_mask, (0, rows.shape[1] - x.shape[1]), value=False)
        logits = logits.masked_fill(hidden[:, None, None], -torch.inf)
    to_rows = softmax(logits) * keep_u[:, :, :num_text]
    return y, to_rows @ rows[:, None], to_rows.sum(-1)


def with_gradients(function: Any, given: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Outputs, then the gradients of all inputs for some cotangents."""
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    outputs = function(**leaves, **options)
    sum((output.double() * torch.arange(output.numel()).view_as(output).cos()).sum() for output in outputs).backward()
    return [*outputs, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values())]


def ours(backend: str, **arguments: Any) -> tuple[Tensor, ...]:
    return bi_attention(**arguments, return_mass=True, backend=backend)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "some text rows": {"num_text": 5},
    "no text rows": {"num_text": 0},
    "image mask": {"image_mask": (torch.arange(POSITIONS) < 9).expand(BATCH, -1)},
    "nothing visible": {"image_mask": torch.zeros(BATCH, POSITIONS, dtype=torch.bool)},
    "dropout": {"dropout_p": 0.4, "seed": 2**40 + 7, "num_text": 6},
    "everything": {"dropout_p": 0.2, "seed": 5, "num_text": 4, "image_mask": torch.arange(POSITIONS).expand(2, -1) > 3},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("prompts", [None, 0, PROMPTS], ids=["bare", "no prompts", "prompts"])
def test_matches_textbook_with_gradients(backend: str, options: dict[str, Any], prompts: int | None) -> None:
    inputs = tensors(prompts=prompts or 0)
    if prompts is None:
        del inputs["prompts"]
    expected = with_gradients(textbook, inputs, **options)
    for value, reference in zip(with_gradients(ours, inputs, backend=backend, **options), expected):
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_sizes(backend: str, data: st.DataObject) -> None:
    def size(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    # The compiled operator's tiles are of up to 252 rows.
    inputs = tensors(
        batch=size(1, 3),
        positions=size(0, 600 if backend == "ext" else 20),
        heads=size(1, 9),
        tokens=size(1, 70),
        width=data.draw(st.sampled_from([1, 7, 8, 40])),
        prompts=size(0, 9),
    )
    batch, positions, tokens = *inputs["x"].shape[:2], inputs["keys"].shape[2]
    options: dict[str, Any] = {"num_text": size(0, tokens), "dropout_p": data.draw(st.sampled_from([0.0, 0.3]))}
    if data.draw(st.booleans()):
        numbers = torch.rand(batch, positions, generator=torch.Generator().manual_seed(1), device="cpu")
        options["image_mask"] = numbers.to(DEVICE) > 0.3
    expected = with_gradients(textbook, inputs, **options)
    for value, reference in zip(with_gradients(ours, inputs, backend=backend, **options), expected):
        torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-9)


# Whole and broken tiles, several groups of heads and one, as many threads as there are and fewer.
SHAPES = {
    "short text": {"batch": 1, "positions": 1000, "heads": 8, "tokens": 30, "width": 256, "prompts": 10},
    "long text": {"batch": 2, "positions": 300, "heads": 2, "tokens": 266, "width": 64, "prompts": 10},
    "longer than a group": {"batch": 1, "positions": 70, "heads": 3, "tokens": 400, "width": 24, "prompts": 1},
    "small and odd": {"batch": 3, "positions": 13, "heads": 5, "tokens": 3, "width": 10, "prompts": 3},
    "many prompts": {"batch": 1, "positions": 5, "heads": 2, "tokens": 9, "width": 16, "prompts": 300},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_low_precision_is_no_worse_than_plain(backend: str, dtype: torch.dtype, shape: dict[str, int]) -> None:
    inputs = tensors(dtype, **shape)
    # The same rounded inputs for all, so that only the arithmetic differs.
    exact = with_gradients(textbook, {name: value.double() for name, value in inputs.items()})
    plain = with_gradients(textbook, inputs)
    for value, rough, reference in zip(with_gradients(ours, inputs, backend=backend), plain, exact):
        assert value.dtype == rough.dtype or value.dtype == dtype
        if value.numel():
            steps = 20 if dtype == torch.float32 else 1
            allowed = 2 * (rough - reference).abs().max() + steps * torch.finfo(dtype).eps * reference.abs().max()
            assert (value - reference).abs().max() <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_gradcheck(backend: str, dropout_p: float) -> None:
    inputs = tensors(positions=5, tokens=3)
    inputs["key_bias"][0, :, 1] = 0.5
    names, leaves = list(inputs), [value.requires_grad_() for value in inputs.values()]
    options = {"num_text": 2, "dropout_p": dropout_p, "seed": 3, "backend": backend}
    assert torch.autograd.gradcheck(lambda *t: ours(**dict(zip(names, t)), **options), leaves)


@needs_library
@pytest.mark.parametrize("prompts", [None, PROMPTS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, prompts: int | None) -> None:
    inputs = tensors(dtype, prompts=prompts or 0)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    rows = leaves["prompts"] if prompts else None
    mask = OPTIONS["image mask"]["image_mask"]
    arguments = (leaves["x"], leaves["keys"], leaves["key_bias"], leaves["values"], rows, mask, 5, 0.1, 3)
    torch.library.opcheck(torch.ops.sdpt_ext.bi_attention, arguments)


needs_residual = pytest.mark.skipif(
    not _library.has_kernel("bi_attention_residual", DEVICE), reason="no kernel adds the residual here"
)


def layer_norm(width: int, dtype: torch.dtype) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(width, eps=1e-3, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, width))
        norm.bias.copy_(torch.linspace(1, -1, width))
    return norm


@needs_residual
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normalises_before_and_adds_after_ext(dtype: torch.dtype, shape: dict[str, int]) -> None:
    inputs = tensors(dtype, **shape)
    norm, offset = layer_norm(shape["width"], dtype), torch.linspace(-1, 1, shape["width"]).to(dtype)
    v = (3 * inputs.pop("x") + 5).mT.contiguous().mT
    given = v.clone()
    mask = torch.arange(shape["positions"]).expand(shape["batch"], -1) > 2
    options = {"num_text": shape["tokens"] - 1, "image_mask": mask}
    with torch.no_grad():
        actual = bi_attention_residual(v, norm, **inputs, offset=offset, **options)
        x = norm(v)
    y, *others = ours("ext", x=x, **inputs, **options)
    precise = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    expected = [x.double() + offset.double() + y.double(), *others]
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value.double(), reference.double(), rtol=precise, atol=2 * precise)
    assert torch.equal(v, given)


@needs_residual
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, 1e4), (0.0, 7.0)], ids=["small", "far", "constant"])
def test_layer_norm_is_that_of_torch_ext(dtype: torch.dtype, scale: float, shift: float) -> None:
    """Without text nothing is added; two passes over a row lose no digits where its mean is large."""
    v = scale * tensors(dtype, positions=9, width=40)["x"] + shift
    norm, nothing = layer_norm(40, dtype), v.new_zeros(v.shape[0], 2, 0, 40)
    actual, _, _ = bi_attention_residual(v, norm, nothing, nothing[..., 0], nothing, v.new_zeros(40))
    wide = v.double()
    deviation = (wide.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
    precise = (wide - wide.mean(-1, keepdim=True)) / deviation
    expected = precise * norm.weight + norm.bias
    plain = (norm(v).double() - expected).abs().max()
    rounded = torch.finfo(dtype).eps * v.abs().max().clamp(min=1)  # what the mean of a row can lose
    assert (actual.double() - expected).abs().max() <= 2 * plain + 8 * rounded


@needs_residual
def test_opcheck_of_residual_ext() -> None:
    inputs, norm = tensors(), layer_norm(WIDTH, torch.float64)
    text = (inputs[name] for name in ("keys", "key_bias", "values"))
    row = norm.bias.detach()
    arguments = (inputs["x"], norm.weight.detach(), row, 1e-5, *text, row, inputs["prompts"], None, 5)
    torch.library.opcheck(torch.ops.sdpt_ext.bi_attention_residual, arguments)


@needs_residual
def test_residual_refuses_rows_that_do_not_fit_ext() -> None:
    inputs, row = tensors(), torch.ones(WIDTH, dtype=torch.float64)
    v = inputs.pop("x")
    with pytest.raises(RuntimeError, match="offset must have shape"):
        bi_attention_residual(v, layer_norm(WIDTH, torch.float64), **inputs, offset=row[1:])
    with pytest.raises(RuntimeError, match="dtype of v"):
        bi_attention_residual(v, layer_norm(WIDTH, torch.float32), **inputs, offset=row)


@needs_library
@pytest.mark.skipif(DEVICE != "cpu", reason="they are of CPUs")
@pytest.mark.skipif("SDPT_EXT_LIBRARY" in os.environ, reason="another library may not hold these variants")
@pytest.mark.parametrize("capability", ["generic", "avx2", "avx512"])
def test_lesser_instruction_sets(capability: str) -> None:
    """The variants for other processors, in a process of their own that is told to be one."""
    chosen = "test_matches_textbook_with_gradients or test_low_precision"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", f"({chosen}) and ext"]
    environment = {**os.environ, "SDPT_EXT_CPU_CAPABILITY": capability}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-2000:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_reproducible_and_unbiased(backend: str) -> None:
    inputs = tensors()
    first, again, other = (bi_attention(**inputs, dropout_p=0.3, seed=seed, backend=backend)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    draws = [ours(backend, **inputs, dropout_p=0.3, seed=100 * seed) for seed in range(600)]
    for mean, exact in zip((torch.stack(part).mean(0) for part in zip(*draws)), textbook(**inputs)):
        torch.testing.assert_close(mean, exact, rtol=0.0, atol=0.27)


def test_dropout_keeps_its_share_everywhere() -> None:
    kept = Dropout(0.25, seed=9).factors(TO_TEXT, (2, 4, 16), range(100, 612), torch.zeros(())) > 0
    for dims in ((0, 1, 2), (0, 1, 3), (2, 3)):
        share = kept.float().mean(dims)
        count = kept.numel() / share.numel()
        assert (share - 0.75).abs().max() < 4.5 * (0.25 * 0.75 / count) ** 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_invisible_caption_gives_zeros(backend: str) -> None:
    inputs = tensors()
    inputs["key_bias"][1] = -torch.inf
    y, _, *gradients = with_gradients(lambda **t: bi_attention(**t, backend=backend), inputs)
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend: str) -> None:
    inputs = tensors()
    inputs["x"][0] = torch.nan
    y, u = bi_attention(**inputs, backend=backend)
    assert y[0].isnan().all() and u[0].isnan().all()
    assert torch.isfinite(y[1]).all() and torch.isfinite(u[1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "positions", "tokens"), [(2, 0, 3), (2, 5, 0), (0, 5, 3), (1, 1, 1)])
def test_empty_and_single(backend: str, batch: int, positions: int, tokens: int) -> None:
    y, u, mass, *gradients = with_gradients(
        ours, tensors(batch=batch, positions=positions, tokens=tokens), backend=backend
    )
    assert y.shape == (batch, positions, WIDTH)
    assert u.shape == (batch, HEADS, tokens, WIDTH)
    assert all(torch.isfinite(value).all() for value in (y, u, mass, *gradients))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_low_precision(backend: str) -> None:
    with torch.autocast(DEVICE, torch.bfloat16):
        y, u = bi_attention(**tensors(torch.float32), backend=backend)
    assert y.dtype == u.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs(backend: str) -> None:
    inputs = tensors()
    strided = {name: value.mT.contiguous().mT for name, value in inputs.items() if value.dim() > 1}
    strided["image_mask"] = torch.ones(POSITIONS, BATCH, dtype=torch.bool).mT
    for value, reference in zip(ours(backend, **strided), ours(backend, **inputs)):
        torch.testing.assert_close(value, reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8)}, r"x must be \(B, N, D\)"),
        ({"keys": torch.zeros(1, HEADS, TOKENS, WIDTH)}, "do not fit x"),
        ({"values": torch.zeros(BATCH, HEADS, TOKENS, 9)}, "do not fit"),
        ({"prompts": torch.zeros(4, 9)}, r"prompts must be \(K, 8\)"),
        ({"image_mask": torch.ones(2, 3, dtype=torch.bool)}, r"image_mask must be \(2, 11\)"),
        ({"num_text": 8}, "between 0 and 7"),
        ({"dropout_p": 1.0}, "below 1"),
        ({"values": torch.zeros(BATCH, HEADS, TOKENS, WIDTH, device="meta")}, "values is on meta"),
        ({"backend": "cuda"}, "choose one of auto, ext, torch"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bi_attention(**{**tensors(torch.float32), **change})


@needs_library
@pytest.mark.parametrize("name", ["grad_y", "grad_u", "u", "image_lse", "text_lse"])
def test_backward_refuses_what_does_not_fit(name: str) -> None:
    inputs = tensors(torch.float32)
    given_first = {name: inputs[name] for name in ("x", "keys", "key_bias", "values", "prompts")}
    y, u, mass, image_lse, text_lse = torch.ops.sdpt_ext.bi_attention(*given_first.values(), None, TOKENS, 0.0, 0)
    grads = {"grad_y": y, "grad_u": u, "grad_mass": mass}
    saved = {"image_mask": None, "u": u, "mass": mass, "image_lse": image_lse, "text_lse": text_lse}
    arguments = {**grads, **given_first, **saved}
    arguments[name] = arguments[name][:, :-1]
    with pytest.raises(RuntimeError, match=name):
        torch.ops.sdpt_ext.bi_attention_backward(**arguments, num_text=TOKENS, dropout_p=0.0, seed=0)
