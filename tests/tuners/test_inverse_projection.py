"""The inverse of a frozen projection: equal to the Moore-Penrose inverse, computed once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdpt_ext.tuners import inverse_projection
from sdpt_ext.tuners.inverse_projection import InverseProjection, pseudo_inverse


def matrix(rows: int, columns: int, smallest: float) -> Tensor:
    """A random matrix with singular values from 1 down to ``smallest``."""
    torch.manual_seed(0)
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rank, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, rank, dtype=torch.float64))[0]
    return left * torch.logspace(0, torch.tensor(smallest).log10(), rank, dtype=torch.float64) @ right.mT


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-3, 1e-4, 1e-8])
@pytest.mark.parametrize("shape", [(64, 64), (96, 24), (24, 96)])
def test_equals_the_moore_penrose_inverse(shape: tuple[int, int], smallest: float) -> None:
    weight = matrix(*shape, smallest)
    expected = torch.linalg.pinv(weight.mT)
    assert torch.linalg.norm(pseudo_inverse(weight) - expected) < 1e-12 * torch.linalg.norm(expected)


def test_lost_columns() -> None:
    weight = matrix(32, 8, 1.0)
    weight[:, 3] = weight[:, 5]
    weight[:, 0] = 0
    torch.testing.assert_close(pseudo_inverse(weight), torch.linalg.pinv(weight.mT))


def test_well_conditioned_weights_need_no_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    projection = nn.Linear(256, 2048)
    nn.init.xavier_uniform_(projection.weight)
    monkeypatch.setattr(inverse_projection.torch.linalg, "pinv", None)
    assert pseudo_inverse(projection.weight.detach()).shape == (2048, 256)


def test_inference_mode_leaves_nothing_that_training_cannot_use() -> None:
    inverse, projection, tokens = InverseProjection(), nn.Linear(4, 9), torch.randn(3, 9, requires_grad=True)
    with torch.inference_mode():
        inverse(projection, tokens)
    inverse(projection, tokens).sum().backward()
    assert tokens.grad is not None and projection.weight.grad is None and projection.bias.grad is None


def test_computed_once_for_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(inverse_projection, "pseudo_inverse", lambda w: calls.append(w) or pseudo_inverse(w))
    inverse, projection, tokens = InverseProjection(), nn.Linear(4, 9), torch.randn(3, 9)
    first = inverse(projection, tokens)
    assert torch.equal(inverse(projection, tokens), first) and len(calls) == 1
    nn.init.normal_(projection.weight)
    assert not torch.equal(inverse(projection, tokens), first) and len(calls) == 2
