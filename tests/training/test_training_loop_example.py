"""The example of a training loop runs, and what it writes is an adapter of its host."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import sdpt_ext
from sdpt_ext.models.loading import load_model

SCRIPT = Path(__file__).parents[2] / "python" / "examples" / "training_loop.py"


def test_the_example_writes_an_adapter(
    tmp_path: Path, model_folder: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two epochs and a half of the six training pictures.
    flags = {"model": model_folder, "data": data_folder, "steps": 8, "batch_size": 2, "adapter": tmp_path}
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *(f"--{name}={value}" for name, value in flags.items())])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    host, _ = load_model(str(model_folder))
    initial = sdpt_ext.tuners.gates(sdpt_ext.tune(host, sdpt_ext.SDPTConfig(gate="zero")))
    assert all(not gate.any() for gate in initial)
    assert all(gate.all() for gate in sdpt_ext.tuners.gates(sdpt_ext.load_adapter(host, tmp_path)))
