from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import sdpt_ext
from sdpt_ext.demo import ObjectFinder, build_page, main
from sdpt_ext.models.loading import load_model

from .random_detector import save_detector, save_pictures


@pytest.fixture
def finder(tmp_path: Path) -> ObjectFinder:
    model, processor = load_model(save_detector(tmp_path / "detector"))
    torch.manual_seed(0)
    return ObjectFinder(sdpt_ext.tune(model), processor, has_adapter=True)


@pytest.fixture
def picture(tmp_path: Path) -> Image.Image:
    (name, *_) = save_pictures(tmp_path / "pictures")
    return Image.open(tmp_path / "pictures" / name).convert("RGB")


def test_both_models_answer(finder: ObjectFinder, picture: Image.Image) -> None:
    (tuned, counts), (zero_shot, _) = finder(picture, "raccoon. fox", 0.05)
    assert tuned.size == zero_shot.size == picture.size
    assert "raccoon" in counts or "fox" in counts
    assert tuned.tobytes() != zero_shot.tobytes() != picture.tobytes()
    assert finder(picture, "raccoon", 1.0) == [(picture, "nothing")] * 2
    finder.has_adapter = False
    assert len(finder(picture, "raccoon", 1.0)) == 1


def test_what_is_missing_is_said(finder: ObjectFinder, picture: Image.Image) -> None:
    for arguments in ((None, "fox"), (picture, " . ")):
        with pytest.raises(ValueError, match="give a picture, and names"):
            finder(*arguments, 0.5)


def test_the_page_asks_the_finder(finder: ObjectFinder, picture: Image.Image) -> None:
    gradio = pytest.importorskip("gradio")
    page = build_page(gradio, finder, "raccoon")
    (function,) = {call.fn for call in page.fns.values()}
    drawn, counts, *_ = function(picture, "raccoon. fox", 0.05)
    assert drawn.size == picture.size and counts
    with pytest.raises(gradio.Error, match="give a picture"):
        function(None, "", 0.5)


def test_without_gradio_the_fix_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert 'pip install "sdpt_ext[demo]"' in capsys.readouterr().err
