"""Untrained inverse of a frozen linear projection (SDPT, section 3.3)."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sdpt_ext.nn import Memo

# Bounds the loss of digits: up to here both ways to the inverse agree to 1e-12 of its norm.
_LARGEST_CONDITION = 3e4


def pseudo_inverse(weight: Tensor) -> Tensor:
    """``pinv(W^T)`` of an (E, d) weight: (E, d) in float64.

    By ``W = Q R`` it is ``Q R^-T`` wherever W has full column rank, several times faster than by singular values.
    """
    weight = weight.double()
    q, r = torch.linalg.qr(weight)
    if weight.shape[0] >= weight.shape[1]:
        inverse = torch.linalg.solve_triangular(r, torch.eye(r.shape[0], dtype=r.dtype, device=r.device), upper=True)
        # Frobenius norms bound the condition number from above; it is not a number where R is singular.
        if r.norm() * inverse.norm() < _LARGEST_CONDITION:
            return q @ inverse.mT
    return torch.linalg.pinv(weight.mT)


class InverseProjection:
    """Map tokens of a projection's output space back to its input space: ``(P - b) pinv(W^T)``.

    The Moore-Penrose inverse is computed in float64 once and again only when the weight changes. It is not part of
    any state dict, since it follows from the frozen weight.
    """

    def __init__(self) -> None:
        self._inverse: Memo[Tensor] = Memo()
        self._number = next(_NUMBERS)
        _INVERSES[self._number] = self._inverse

    def __call__(self, projection: nn.Linear, tokens: Tensor) -> Tensor:
        """(K, out_features) tokens -> (K, in_features); gradients flow to the tokens alone."""
        centred = tokens - projection.bias.detach().to(tokens.dtype)
        return _apply_inverse(centred, projection.weight.detach(), self._number)

    def __reduce__(self) -> tuple[type[InverseProjection], tuple[()]]:
        return type(self), ()


# A compiled program calls operators by numbers: what an InverseProjection remembers is found by its own.
_NUMBERS = itertools.count()
_INVERSES: WeakValueDictionary[int, Memo[Tensor]] = WeakValueDictionary()


def _inverse(weight: Tensor, number: int) -> Tensor:
    # What is kept from an evaluation in inference mode could not serve training afterwards.
    with torch.inference_mode(False):
        return _INVERSES.get(number, Memo())([weight], lambda: pseudo_inverse(weight).to(weight.dtype))


@torch.library.custom_op("sdpt_ext::apply_inverse", mutates_args=())
def _apply_inverse(tokens: Tensor, weight: Tensor, number: int) -> Tensor:
    """(K, E) tokens times the inverse (E, d), in the precision of the tokens whatever autocast says."""
    with torch.autocast(tokens.device.type, enabled=False):
        return tokens @ _inverse(weight, number).to(tokens.dtype)


@torch.library.custom_op("sdpt_ext::apply_inverse_backward", mutates_args=())
def _apply_inverse_backward(grad: Tensor, weight: Tensor, number: int) -> Tensor:
    with torch.autocast(grad.device.type, enabled=False):
        return grad @ _inverse(weight, number).to(grad.dtype).mT


@_apply_inverse.register_fake
def _(tokens: Tensor, weight: Tensor, number: int) -> Tensor:
    return tokens.new_empty(tokens.shape[0], weight.shape[1])


@_apply_inverse_backward.register_fake
def _(grad: Tensor, weight: Tensor, number: int) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    _, weight, ctx.number = inputs
    ctx.save_for_backward(weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (weight,) = ctx.saved_tensors
    return _apply_inverse_backward(grad, weight, ctx.number), None, None


_apply_inverse.register_autograd(_backward, setup_context=_setup_context)

__all__ = ["InverseProjection", "pseudo_inverse"]
