"""A run on LVIS: training captions of what is known, and LVIS's own figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data import folders

pytest.importorskip("faster_coco_eval")


def test_lvis(train: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lvis_v1_train", "lvis_v1_val"):
        folders.write_lvis(tmp_path / "data", folders.lvis_content(), name)
    train(tmp_path / "run", "--data", f"lvis:{tmp_path / 'data'}", "--max_steps", 2, "--eval_steps", 1)
    tuned = json.loads((tmp_path / "run" / "metrics.json").read_text())["tuned"]
    assert {"AP", "APr", "APc", "APf", "per_class"} <= set(tuned)
    assert set(tuned["per_class"]) == {"star", "ring", "gear_(wheel)", "fire_engine"}
    assert "APr" in capsys.readouterr().out
