"""Which parameters of a detector train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import nn


def freeze(
    model: nn.Module,
    keep: Callable[[str], bool] = lambda name: False,
    host_dropout: bool = False,
    at_rest: Sequence[str] = (),
) -> None:
    """Freeze every parameter but those whose name ``keep`` accepts.

    Without ``host_dropout`` the frozen modules also stay in evaluation mode while the model trains: dropout,
    drop-path and DropBlock would otherwise blur features that nothing can adapt to them. With it, only the modules
    named in ``at_rest`` do. Both choices are kept as attributes of the model.
    """
    if not hasattr(model, "host_dropout"):
        model.register_forward_pre_hook(_hold_frozen_modules)
        model.trained_before = {name for name, p in model.named_parameters() if p.requires_grad}  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(keep(name))
    model.host_dropout, model.modules_at_rest = host_dropout, tuple(at_rest)  # type: ignore[assignment]
    model.train(model.training)


def _hold_frozen_modules(model: nn.Module, inputs: Any) -> None:
    """Forward pre-hook: ``train()`` of the model, or of a wrapper around it, has switched every module before."""
    if not model.training:
        return
    if model.host_dropout:
        for name in cast(tuple[str, ...], model.modules_at_rest):
            model.get_submodule(name).eval()
        return
    for module in model.modules():
        # The model itself keeps reporting that it trains.
        if module is not model and not any(p.requires_grad for p in module.parameters(recurse=False)):
            module.training = False


@contextmanager
def thawed(model: nn.Module) -> Iterator[None]:
    """Within the context parameters require gradients as they did before the first :func:`freeze`.

    The flag decides how torch multiplies by a weight, even where gradients are off: a frozen model rounds otherwise.
    """
    trained: set[str] | None = getattr(model, "trained_before", None)
    flags = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
    for name, parameter, trains in flags:
        # PEFT and BottleneckedLinear put a module around a layer, and the layer's name changes.
        parameter.requires_grad_(trains if trained is None else name.replace(".base_layer.", ".") in trained)
    try:
        yield
    finally:
        for _, parameter, trains in flags:
            parameter.requires_grad_(trains)


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """-> (numbers that train, all numbers) of a model."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


__all__ = ["freeze", "thawed", "trainable_parameters"]
