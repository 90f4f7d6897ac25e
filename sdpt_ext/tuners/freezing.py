"""Which parameters of a detector train."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def freeze(model: nn.Module, keep: Callable[[str], bool] = lambda name: False, host_dropout: bool = False) -> None:
    """Freeze every parameter but those whose name ``keep`` accepts.

    Without ``host_dropout`` the frozen modules also stay in evaluation mode while the model trains: dropout,
    drop-path and DropBlock would otherwise blur features that nothing can adapt to them.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(keep(name))
    model.host_dropout = host_dropout  # type: ignore[assignment]
    model.train(model.training)


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """-> (numbers that train, all numbers) of a model."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


__all__ = ["freeze", "trainable_parameters"]
