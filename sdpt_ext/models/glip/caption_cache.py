"""The hidden states of the last few captions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

# Every caption of a data set with a thousand classes, at batch size 1.
_LIMIT_BYTES = 64 * 2**20


class CaptionCache:
    """Tensors under what they were computed from; the ones not asked for longest go first when it is full.

    Several threads may share it, as those of a web server do.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor under a key, computed if it is not there. Callers get a copy of their own."""
        with self._lock:
            tensor = self._tensors.get(key)
        if tensor is None:
            tensor = compute()
        with self._lock:
            self._keep(key, tensor)
        return tensor.clone()

    def _keep(self, key: Hashable, tensor: Tensor) -> None:
        self._tensors[key] = tensor
        self._tensors.move_to_end(key)
        while self._tensors and sum(kept.nbytes for kept in self._tensors.values()) > self._limit:
            self._tensors.popitem(last=False)


__all__ = ["CaptionCache"]
