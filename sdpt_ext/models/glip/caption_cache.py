"""The hidden states of the last few captions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

# Every caption of a data set with a thousand classes, at batch size 1.
_LIMIT_BYTES = 64 * 2**20


class CaptionCache:
    """Tensors under what they were computed from; the ones not asked for longest go first when it is full."""

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor under a key, computed if it is not there. Callers get a copy of their own."""
        tensor = self._tensors.pop(key, None)
        if tensor is None:
            tensor = compute()
        self._tensors[key] = tensor
        while self._tensors and sum(kept.nbytes for kept in self._tensors.values()) > self._limit:
            self._tensors.popitem(last=False)
        return tensor.clone()


__all__ = ["CaptionCache"]
