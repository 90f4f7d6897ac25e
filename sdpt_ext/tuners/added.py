"""What a method has added to a host: its tensors, and the host without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def state_of(model: nn.Module, kind: type[nn.Module]) -> dict[str, Tensor]:
    """The tensors of every module of one class by their name in the model's state dict, in its order."""
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, kind))
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}


@contextmanager
def emptied(model: nn.Module, holder: type[nn.Module], slot: str) -> Iterator[None]:
    """Within the context every module of the class ``holder`` has None as its attribute ``slot``."""
    kept = [(module, getattr(module, slot)) for module in model.modules() if isinstance(module, holder)]
    for module, _ in kept:
        setattr(module, slot, None)
    try:
        yield
    finally:
        for module, content in kept:
            setattr(module, slot, content)


__all__ = ["emptied", "state_of"]
