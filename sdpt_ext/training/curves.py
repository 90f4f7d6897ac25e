"""curves.png: the training loss and the validation AP over the steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdpt_ext.data.atomic import replacing


def draw_curves(path: Path, log_history: list[dict[str, Any]], zero_shot_ap: float | None) -> None:
    """Draw the curves into a PNG file.

    Args:
        path: the file, replaced whole.
        log_history: the Trainer's log: entries with `step` and `loss` or `eval_AP`.
        zero_shot_ap: AP of the untuned model on the validation split, a dashed line; None if it was not measured.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, ap_axes = figure.subplots(1, 2)
    _curve(loss_axes, log_history, "loss", "training loss")
    _curve(ap_axes, log_history, "eval_AP", "validation AP")
    if zero_shot_ap is not None:
        ap_axes.axhline(zero_shot_ap, linestyle="--", color="gray", label="zero-shot")
        ap_axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _curve(axes: Axes, log_history: list[dict[str, Any]], name: str, title: str) -> None:
    points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
    axes.plot([step for step, _ in points], [value for _, value in points], marker="o", markersize=3, label="tuned")
    axes.set_xlabel("step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
