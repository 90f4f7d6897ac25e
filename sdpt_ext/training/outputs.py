"""The folder of a run: what it holds, where a run in it can continue, and files written whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from sdpt_ext.data.atomic import write_json, write_text
from sdpt_ext.models.glip import processing
from sdpt_ext.training.weights import MODEL_FOLDER
from sdpt_ext.tuners import adapter

METRICS, CONFIG, PREDICTIONS = "metrics.json", "config.yaml", "predictions_test.json"
CURVES, EXAMPLES = "curves.png", "examples.png"
AUTO_RESUME = "auto"
_TENSORBOARD = "runs"
_ADAPTER = (adapter.CONFIG_NAME, adapter.WEIGHTS_NAME, processing.CONFIG_NAME)
_NOT_IN_RECIPE = ("resume_from_checkpoint", "overwrite")


class RunFolder:
    """The output folder of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()

    def prepare(self, resume: str | None, overwrite: bool) -> Path | None:
        """Make the folder ready for a run and find the checkpoint that it continues from.

        Args:
            resume: "auto" (the last checkpoint here, if any), the folder of a checkpoint, or None for a new run.
            overwrite: remove the files of a former run.

        Returns:
            The checkpoint, or None for a run that starts at step 0.

        Raises:
            FileExistsError: a run is already here and the user neither resumes nor overwrites it.
            FileNotFoundError: `resume` is not a complete checkpoint.
        """
        checkpoint = self._last_checkpoint() if resume == AUTO_RESUME else _complete(resume)
        if checkpoint is None and overwrite:
            self._clear()
        elif checkpoint is None and self._holds_run():
            raise FileExistsError(
                f"{self.path} already holds a run: pass --resume_from_checkpoint auto to continue it, --overwrite to "
                "replace it, or another --output_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        return checkpoint

    def write_config(self, values: dict[str, Any]) -> None:
        """The resolved flags, as a recipe that reproduces the run."""
        recipe = {name: value for name, value in values.items() if name not in _NOT_IN_RECIPE}
        write_text(self.path / CONFIG, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_json(self.path / METRICS, metrics)

    def read_metrics(self) -> dict[str, Any]:
        """What a run has measured here so far; empty if nothing."""
        return _read_json(self.path / METRICS) or {}

    def write_predictions(self, predictions: list[dict[str, Any]]) -> None:
        """Detections on the test split as COCO results."""
        write_json(self.path / PREDICTIONS, predictions)

    def _holds_run(self) -> bool:
        return bool(self._checkpoints()) or any((self.path / name).exists() for name in (*_ADAPTER, MODEL_FOLDER))

    def _clear(self) -> None:
        for folder in (*self._checkpoints(), self.path / MODEL_FOLDER, self.path / _TENSORBOARD):
            if folder.exists():
                shutil.rmtree(folder)
        for name in (METRICS, CONFIG, PREDICTIONS, CURVES, EXAMPLES, *_ADAPTER):
            (self.path / name).unlink(missing_ok=True)

    def _checkpoints(self) -> list[Path]:
        return [Path(name) for name in sort_checkpoints(str(self.path), PREFIX_CHECKPOINT_DIR)]

    def _last_checkpoint(self) -> Path | None:
        complete = [folder for folder in self._checkpoints() if _is_complete(folder)]
        return complete[-1] if complete else None


def _complete(resume: str | None) -> Path | None:
    if resume is None:
        return None
    if not _is_complete(Path(resume)):
        raise FileNotFoundError(
            f"--resume_from_checkpoint {resume}: not a complete checkpoint (no readable trainer_state.json); give a "
            f"checkpoint-N folder, or {AUTO_RESUME} for the last one in --output_dir"
        )
    return Path(resume)


def _is_complete(checkpoint: Path) -> bool:
    """The trainer state is the last file of a checkpoint to be written."""
    return _read_json(checkpoint / "trainer_state.json") is not None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
