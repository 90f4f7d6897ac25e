"""Comparison of the head's raw predictions, level by level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from sdpt_ext.models.glip.head import HeadOutput
from sdpt_ext.models.glip.modeling import GlipOutput

from . import cases


def by_level(
    output: GlipOutput | HeadOutput, sizes: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """-> level, box maps (B, 4, h, w), centre-ness maps (B, 1, h, w), token logits (B, h*w, T)."""
    counts = [height * width for height, width in sizes]
    parts = (output.box_deltas.split(counts, 1), output.centerness.split(counts, 1), output.logits.split(counts, 1))
    for level, (size, boxes, centerness, logits) in enumerate(zip(sizes, *parts)):
        yield level, boxes.mT.unflatten(2, size), centerness.mT.unflatten(2, size), logits


def assert_head(
    output: GlipOutput | HeadOutput,
    sizes: Sequence[tuple[int, int]],
    arrays: dict[str, np.ndarray],
    prefix: str,
    tolerance: float,
) -> None:
    for level, boxes, centerness, logits in by_level(output, sizes):
        cases.assert_close(boxes, arrays, f"{prefix}bbox{level}", tolerance)
        cases.assert_close(centerness, arrays, f"{prefix}ctr{level}", tolerance)
        cases.assert_close(logits, arrays, f"{prefix}dot{level}", tolerance)


def cotangent_sum(output: HeadOutput, sizes: Sequence[tuple[int, int]], case: str) -> Tensor:
    """Sum over all predictions of prediction times its golden cotangent: what the golden gradients are taken of."""
    total = output.logits.new_zeros(())
    for level, *values in by_level(output, sizes):
        for name, value in zip(("bbox", "ctr", "dot"), values):
            total = total + (value * cases.cotangent(f"{case}.{name}{level}", value)).sum()
    return total


def assert_gradient(actual: Tensor | None, arrays: dict[str, np.ndarray], name: str, tolerance: float) -> None:
    """Relative L2: bilinear sampling, ReLU6 and max have kinks where float32 may take the other side."""
    assert actual is not None, f"{name}: no gradient"
    error = cases.relative_l2(actual, arrays, name)
    assert error <= tolerance, f"{name}: relative L2 {error:.2e} > {tolerance:.0e}"
