"""Untrained inverse of a frozen linear projection (SDPT, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InverseProjection:
    """Map tokens of a projection's output space back to its input space: ``(P - b) pinv(W^T)``.

    The Moore-Penrose inverse is computed in float64 once and again only when the weight changes. It is not part of
    any state dict, since it follows from the frozen weight.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._inverse: Tensor | None = None

    def __call__(self, projection: nn.Linear, tokens: Tensor) -> Tensor:
        """(K, out_features) tokens -> (K, in_features); gradients flow to the tokens alone."""
        weight, bias = projection.weight.detach(), projection.bias.detach()
        return (tokens - bias.to(tokens.dtype)) @ self._pseudo_inverse(weight).to(tokens.dtype)

    def _pseudo_inverse(self, weight: Tensor) -> Tensor:
        key = (weight.data_ptr(), weight._version, weight.dtype, weight.device, weight.shape)
        if self._inverse is None or key != self._key:
            self._key, self._inverse = key, torch.linalg.pinv(weight.double().mT).to(weight.dtype)
        return self._inverse


__all__ = ["InverseProjection"]
