"""Counter-based dropout of attention weights: the mask is a function of the seed and of a weight's place.

So every device, every way of cutting the image and the backward pass draw the same mask. The compiled operators hold
the same arithmetic (csrc/cpu/dropout.h, csrc/cuda/dropout.cuh).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TO_IMAGE, TO_TEXT = 0, 1
"""Directions: what image rows gather from the text, and what text tokens gather from the image."""

_GOLDEN_RATIO = 0x9E3779B9
_UINT32 = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers, held in int64, that changes half of the bits when one changes."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & _UINT32
    x = ((x ^ x >> 15) * 0x846CA68B) & _UINT32
    return x ^ x >> 16


class Dropout(NamedTuple):
    """Attributes:
    probability: chance of a weight to be dropped; what is kept is scaled by ``1 / (1 - probability)``.
    seed: any 64-bit integer.
    """

    probability: float
    seed: int

    def factors(self, direction: int, shape: tuple[int, int, int], rows: range, like: Tensor) -> Tensor:
        """Factors (B, H, T, len(rows)), 0 or the scale, of the weights between T tokens and some image rows.

        Args:
            shape: (B, H, T) of the keys.
            rows: numbers of the image rows; prompt k counts as row N + k.
            like: gives device and dtype.
        """
        batch, heads, tokens = shape
        device = like.device
        seed = _mix(torch.tensor(self.seed & _UINT32, device=device)) ^ (self.seed >> 32 & _UINT32)
        place = direction * batch * heads * tokens + torch.arange(batch * heads * tokens, device=device)
        keys = _mix((_mix(seed) + place) & _UINT32)
        counters = torch.arange(rows.start, rows.stop, device=device) * _GOLDEN_RATIO & _UINT32
        bits = _mix(keys.view(batch, heads, tokens, 1) ^ counters)
        return (bits >= int(self.probability * 2**32)).to(like.dtype) / (1.0 - self.probability)


__all__ = ["TO_IMAGE", "TO_TEXT", "Dropout"]
