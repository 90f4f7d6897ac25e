"""Pre-training resumes to what an uninterrupted run gives, and the teacher's loss measures what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "python" / "tools"))

import pretrain_nano
from distillation import FeatureDistillation

from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.models.loading import load_model


def pretrain(folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch, *more: Any) -> dict[str, Any]:
    flags = ["--steps", steps, "--decay_steps", 1, "--batch_size", 2, "--short_sides", 96, "--workers", 0, *more]
    monkeypatch.setattr(sys, "argv", ["pretrain_nano.py", "--work_dir", str(folder), *map(str, flags)])
    pretrain_nano.main()
    return torch.load(folder / "state.pt", weights_only=True)


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrain(tmp_path / "whole", 3, monkeypatch)
    pretrain(tmp_path / "resumed", 2, monkeypatch)
    resumed = pretrain(tmp_path / "resumed", 3, monkeypatch)
    assert resumed["step"] == whole["step"] == 3
    for part in ("model", "average", "auxiliary"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)
    model, processor = load_model(tmp_path / "resumed" / "nano")
    assert model.config.hidden_size == 64
    assert processor.config.shortest_edge == 256


def test_a_run_goes_on_from_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(tmp_path, 1, monkeypatch, "--initial_model", "nano", "--learning_rate", 0)
    shipped = load_model("nano")[0].state_dict()
    for name, value in load_model(tmp_path / "nano")[0].state_dict().items():
        assert torch.equal(value, shipped[name]), name


def test_words_that_no_caption_held_become_as_large_as_the_others() -> None:
    torch.manual_seed(0)
    model = GlipForObjectDetection(GlipConfig.nano())
    vectors = model.text_encoder.model.get_input_embeddings().weight
    with torch.no_grad():
        vectors[:300] *= 5
    before = vectors.detach().clone()
    pretrain_nano.enlarge_unread_words(model)
    assert torch.equal(vectors[:300], before[:300])
    torch.testing.assert_close(vectors[300:].std(), before[1:300].std())  # row 0 is padding
    torch.testing.assert_close(vectors[300:] / vectors[300:].std(), before[300:] / before[300:].std())
    once = vectors.detach().clone()
    pretrain_nano.enlarge_unread_words(model)
    assert torch.equal(vectors, once)


def test_distillation_is_one_for_a_blind_student_and_zero_for_the_teacher_itself() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(2, count, 4, 4) * 3 + 1 for count in (40, 112, 320)]
    blind = [torch.zeros(2, 8, 4, 4) for _ in teacher]
    loss = FeatureDistillation((8, 8, 8))
    for projection in loss.projections:
        torch.nn.init.zeros_(projection.bias)
    torch.testing.assert_close(loss(blind, teacher), torch.tensor(1.0), rtol=1e-4, atol=0)

    known = FeatureDistillation((40, 112, 320))
    for projection in known.projections:
        torch.nn.init.dirac_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    standardised = [norm(maps) for norm, maps in zip(known.norms, teacher, strict=True)]
    assert known(standardised, teacher) < 1e-10
