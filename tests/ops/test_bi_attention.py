"""The folded bi-directional attention against the formulas it stands for, and its own gradients."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpt_ext.ops import bi_attention

BATCH, HEADS, TOKENS, WIDTH, POSITIONS, PROMPTS = 2, 3, 7, 8, 11, 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one short."""
    monkeypatch.setattr(sys.modules[bi_attention.__module__], "_CHUNK_ROWS", 4)


def tensors(dtype: torch.dtype = torch.float64, positions: int = POSITIONS, tokens: int = TOKENS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    bias = draw(BATCH, HEADS, tokens)
    bias[0, :, tokens // 2] = -torch.inf
    return {
        "x": draw(BATCH, positions, WIDTH),
        "keys": draw(BATCH, HEADS, tokens, WIDTH),
        "key_bias": bias,
        "values": draw(BATCH, HEADS, tokens, WIDTH),
        "prompts": draw(PROMPTS, WIDTH),
    }


def textbook(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    prompts: Tensor | None = None,
    num_text: int | None = None,
    image_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    scores = torch.einsum("bnd,bhtd->bhnt", x, keys)
    weights = torch.softmax(scores + key_bias[:, :, None], -1).nan_to_num(0.0)
    y = torch.einsum("bhnt,bhtd->bnd", weights, values)
    rows = x if prompts is None else torch.cat([x, prompts.expand(len(x), -1, -1)], 1)
    logits = torch.einsum("bhtd,bnd->bhtn", keys[:, :, :num_text], rows)
    if image_mask is not None:
        hidden = torch.nn.functional.pad(~image_mask, (0, rows.shape[1] - x.shape[1]), value=False)
        logits = logits.masked_fill(hidden[:, None, None], -torch.inf)
    return y, torch.softmax(logits, -1) @ rows[:, None]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "some text rows": {"num_text": 5},
    "no text rows": {"num_text": 0},
    "image mask": {"image_mask": (torch.arange(POSITIONS) < 9).expand(BATCH, -1)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("with_prompts", [False, True], ids=["bare", "prompts"])
def test_matches_textbook_with_gradients(options: dict[str, Any], with_prompts: bool) -> None:
    given = tensors()
    if not with_prompts:
        del given["prompts"]
    results = []
    for function in (bi_attention, textbook):
        leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
        y, u = function(**leaves, **options)
        (y.sin().sum() + u.cos().sum()).backward()
        results.append([y, u, *(torch.zeros_like(v) if v.grad is None else v.grad for v in leaves.values())])
    for ours, reference in zip(*results):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_gradcheck(dropout_p: float) -> None:
    given = tensors(positions=5, tokens=3)
    given["key_bias"][0, :, 1] = 0.5
    leaves = [value.requires_grad_() for value in given.values()]
    assert torch.autograd.gradcheck(
        lambda *t: bi_attention(*t, num_text=2, dropout_p=dropout_p, seed=3, return_mass=True), leaves
    )


def test_dropout_is_reproducible_and_unbiased() -> None:
    given = tensors()
    first, again, other = (bi_attention(**given, dropout_p=0.3, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    draws = [bi_attention(**given, dropout_p=0.3, seed=100 * seed, return_mass=True) for seed in range(2000)]
    for mean, exact in zip(
        (torch.stack(part).mean(0) for part in zip(*draws)), bi_attention(**given, return_mass=True)
    ):
        torch.testing.assert_close(mean, exact, rtol=0.0, atol=0.15)


def test_invisible_caption_gives_zeros() -> None:
    given = tensors()
    given["key_bias"][1] = -torch.inf
    leaves = {name: value.requires_grad_() for name, value in given.items()}
    y, u = bi_attention(**leaves)
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    (y.sum() + u.sum()).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves.values())


@pytest.mark.parametrize(("positions", "tokens"), [(0, 3), (5, 0), (1, 1)])
def test_empty_and_single(positions: int, tokens: int) -> None:
    given = tensors(positions=positions, tokens=max(tokens, 1))
    given = {k: (v[:, :, :tokens] if k in ("keys", "key_bias", "values") else v) for k, v in given.items()}
    y, u = bi_attention(**given)
    assert y.shape == (BATCH, positions, WIDTH)
    assert u.shape == (BATCH, HEADS, tokens, WIDTH)
    assert torch.isfinite(y).all() and torch.isfinite(u).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_plain(dtype: torch.dtype) -> None:
    exact = textbook(**tensors(torch.float32))
    given = tensors(dtype)
    for ours, plain, reference in zip(bi_attention(**given), textbook(**given), exact):
        assert ours.dtype == dtype
        assert (ours - reference).abs().max() <= 2 * (plain - reference).abs().max()


def test_autocast_computes_in_low_precision() -> None:
    given = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, u = bi_attention(**given)
    assert y.dtype == u.dtype == torch.bfloat16


def test_non_contiguous_inputs() -> None:
    given = tensors()
    strided = {name: value.mT.contiguous().mT for name, value in given.items() if value.dim() > 1}
    for ours, reference in zip(bi_attention(**{**given, **strided}), bi_attention(**given)):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8)}, r"x must be \(B, N, D\)"),
        ({"keys": torch.zeros(1, HEADS, TOKENS, WIDTH)}, "do not fit x"),
        ({"values": torch.zeros(BATCH, HEADS, TOKENS, 9)}, "do not fit"),
        ({"prompts": torch.zeros(4, 9)}, r"prompts must be \(K, 8\)"),
        ({"num_text": 8}, "between 0 and 7"),
        ({"backend": "cuda"}, "unknown backend"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bi_attention(**{**tensors(torch.float32), **change})


def test_ext_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no compiled kernel"):
        bi_attention(**tensors(), backend="ext")
