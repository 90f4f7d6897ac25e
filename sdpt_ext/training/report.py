"""The table that ends a run: zero-shot AP beside tuned AP, and what the tuning cost."""

from __future__ import annotations

import resource
import sys
from datetime import timedelta
from typing import Any

import torch

from sdpt_ext.evaluation.coco import LISTED_CLASSES

_COLUMNS = "{:<22}{:>10}{:>10}{:>10}"


def final_table(metrics: dict[str, Any]) -> str:
    """Text of the final table.

    Args:
        metrics: the content of metrics.json.
    """
    zero_shot, tuned = metrics["zero_shot"], metrics["tuned"]
    lines = [_COLUMNS.format("test split", "zero-shot", "tuned", "gain")]
    lines += [_row(name, zero_shot[name], ap) for name, ap in tuned.items() if name != "per_class"]
    if len(tuned["per_class"]) <= LISTED_CLASSES:
        lines += ["", *(_row(name, zero_shot["per_class"][name], ap) for name, ap in tuned["per_class"].items())]
    lines.append("")
    return "\n".join(lines + _costs(metrics))


def _row(name: str, before: float | None, after: float | None) -> str:
    label = name if len(name) < 22 else f"{name[:20]}…"
    return _COLUMNS.format(label, _rate(before), _rate(after), _gain(before, after)).rstrip()


def _missing(value: float | None) -> bool:
    """pycocotools gives -1 where the split has no such box."""
    return value is None or not value >= 0


def _rate(value: float | None) -> str:
    return "-" if _missing(value) else f"{value:.3f}"


def _gain(before: float | None, after: float | None) -> str:
    if before is None or after is None or _missing(before) or _missing(after):
        return ""
    return f"{after - before:+.3f}"


def _costs(metrics: dict[str, Any]) -> list[str]:
    trainable, total = metrics["trainable_params"], metrics["total_params"]
    seconds = timedelta(seconds=round(metrics["seconds"]))
    training = timedelta(seconds=round(metrics["train_seconds"]))
    return [
        f"trainable parameters  {trainable:,} of {total:,} ({metrics['trainable_percent']:.4g} %)",
        f"time                  {seconds} in all, {training} training",
        f"images per second     {metrics['images_per_second']:.1f} (training)",
        f"peak memory           {metrics['peak_memory_mb']:.0f} MB",
    ]


def peak_memory_mb() -> float:
    """Largest memory of this process so far: on the GPU if one was used, else in RAM."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KB, macOS in bytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
