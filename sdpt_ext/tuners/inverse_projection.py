"""Untrained inverse of a frozen linear projection (SDPT, section 3.3)."""

from __future__ import annotations

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

    def __call__(self, projection: nn.Linear, tokens: Tensor) -> Tensor:
        """(K, out_features) tokens -> (K, in_features); gradients flow to the tokens alone."""
        # What is kept from an evaluation in inference mode could not serve training afterwards.
        with torch.inference_mode(False), torch.autocast(tokens.device.type, enabled=False):
            weight = projection.weight.detach()
            inverse = self._inverse([weight], lambda: pseudo_inverse(weight).to(weight.dtype))
        return (tokens - projection.bias.detach().to(tokens.dtype)) @ inverse.to(tokens.dtype)


__all__ = ["InverseProjection", "pseudo_inverse"]
