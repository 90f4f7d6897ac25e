"""One evaluation shared by several processes, as torchrun and accelerate start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import PartialState
from torch import distributed

_Item = TypeVar("_Item")


@contextmanager
def process_group(device: str = "auto") -> Iterator[None]:
    """Within the context, processes that were started together can share their work; one alone needs nothing.

    Args:
        device: a name that starts with "cpu" keeps processes off the GPUs; else each has its own as current device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    state = PartialState(cpu=device.startswith("cpu"))
    try:
        yield
    finally:
        state.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """The number of this process, from 0, and how many share the work."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own_batches(items: int, batch_size: int) -> list[list[int]]:
    """This process's share of the batches in which one process alone would go through a data set.

    Whole batches are shared out: the padding of an image, and with it the last digits of its detections, comes from the
    others in its batch.
    """
    rank, size = rank_and_size()
    indices = list(range(items))
    batches = [indices[start : start + batch_size] for start in range(0, items, batch_size)]
    return batches[rank::size]


def gathered(item: _Item) -> list[_Item]:
    """What each process passes (anything that can be pickled), by rank; every process must call this."""
    _, size = rank_and_size()
    if size == 1:
        return [item]
    items: list[_Item | None] = [None] * size
    distributed.all_gather_object(items, item)
    return items  # type: ignore[return-value]  # all are filled


__all__ = ["gathered", "own_batches", "process_group", "rank_and_size"]
