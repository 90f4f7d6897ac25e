"""What follows from weights alone, computed once and again only when one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

T = TypeVar("T")

# Read of every weight, besides its version: writes through ``.data`` leave the version as it was.
_SAMPLED_NUMBERS = 16


class _Kept(NamedTuple):
    """A value with the state of the weights it follows from.

    The storages are only watched, not kept: while a watch exists, no other storage takes the same identity.
    """

    state: tuple[Any, ...]
    sample: Tensor | None
    storages: list[StorageWeakRef]
    value: Any


class Memo(Generic[T]):
    """Remembers one value while the tensors that it follows from stay what they are.

    They are told apart by storage, place in it, version, dtype, shape and ``requires_grad``, which decides how torch
    rounds; autocast and inference mode belong to the state too. On the CPU a few numbers of every tensor are compared
    as well, for writes that autograd does not see; elsewhere the host would have to wait for them.

    Nothing is remembered where a gradient is wanted, where a program is being traced or compiled, of tensors that are
    not plain ones, or of none at all. A copied or loaded memo is empty.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def __call__(self, tensors: Iterable[Tensor], compute: Callable[[], T]) -> T:
        """The value of ``compute()``, which may depend on nothing but ``tensors`` and what never changes."""
        tensors = list(tensors)
        if not _are_constants(tensors):
            self.clear()
            return compute()
        state, sample, kept = _state(tensors), _sample(tensors), self._kept
        if kept is None or kept.state != state or not _same(kept.sample, sample):
            storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
            self._kept = kept = _Kept(state, sample, storages, compute())
        value: T = kept.value
        return value

    def clear(self) -> None:
        """Forget the value."""
        self._kept = None

    def __reduce__(self) -> tuple[type[Memo[T]], tuple[()]]:
        return type(self), ()


def _are_constants(tensors: Sequence[Tensor]) -> bool:
    if not tensors or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    gradients = torch.is_grad_enabled()
    return not any(
        type(tensor) not in (Tensor, nn.Parameter) or tensor.is_inference() or (gradients and tensor.requires_grad)
        for tensor in tensors
    )


def _state(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    kind = tensors[0].device.type
    mode = (torch.is_inference_mode_enabled(), torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
    return mode, *(
        (t.untyped_storage()._cdata, t.storage_offset(), t._version, t.requires_grad, t.dtype, t.shape, t.stride())
        for t in tensors
    )


@torch.no_grad()
def _sample(tensors: Sequence[Tensor]) -> Tensor | None:
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    flat = [tensor.flatten() for tensor in tensors]
    return torch.cat([numbers[:: numbers.numel() // _SAMPLED_NUMBERS + 1] for numbers in flat])


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return left is right or (left is not None and right is not None and torch.equal(left, right))


__all__ = ["Memo"]
