"""What each part of a model adds to a counter, time or operations, in the forward and in the backward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class PartMeter:
    """Shares the growth of a counter out to the innermost named module that runs.

    The backward pass of a module starts when the gradients of its outputs are there and ends with those of its inputs.

    Args:
        parts: name of a part -> its modules.
        read: the counter's present value, for example ``time.perf_counter``.
        rest: name of what no part claims.

    Attributes:
        totals: (phase, part) -> growth while that part ran.
        phase: name under which growth is booked.
    """

    def __init__(self, parts: Mapping[str, list[nn.Module]], read: Callable[[], float], rest: str = "rest") -> None:
        self.parts, self.read, self.rest = parts, read, rest
        self.totals: dict[tuple[str, str], float] = defaultdict(float)
        self.phase = ""
        self._stack = [rest]
        self._running, self._since = rest, 0.0

    @contextmanager
    def attached(self) -> Iterator[PartMeter]:
        """Count while the context lasts."""
        handles = []
        for name, modules in self.parts.items():
            for module in modules:
                handles.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leaving(name)))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def counting(self, phase: str) -> Iterator[None]:
        self.phase, self._running, self._since = phase, self.rest, self.read()
        yield
        self._switch(self.rest)

    def _switch(self, part: str) -> None:
        now = self.read()
        self.totals[self.phase, self._running] += now - self._since
        self._running, self._since = part, now

    def _entering(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            marked = self._mark(self._stack[-1], (arguments, keywords))
            self._stack.append(name)
            self._switch(name)
            return marked

        return hook

    def _leaving(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            self._stack.pop()
            self._switch(self._stack[-1])
            return self._mark(name, output)

        return hook

    def _mark(self, part: str, values: Any) -> Any:
        """The same values; once all their gradients are known, `part` runs."""
        leaves, structure = pytree.tree_flatten(values)
        marked = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if marked:
            for i, leaf in zip(marked, _Mark.apply(self, part, *(leaves[i] for i in marked))):
                leaves[i] = leaf
        return pytree.tree_unflatten(leaves, structure)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, meter: PartMeter, part: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.meter, ctx.part = meter, part
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.meter._switch(ctx.part)
        return None, None, *gradients
