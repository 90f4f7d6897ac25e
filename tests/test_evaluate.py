from __future__ import annotations

import json
from pathlib import Path

import pytest

import sdpt_ext
from sdpt_ext.evaluate import main
from sdpt_ext.models.loading import load_model

from .random_detector import save_dataset, save_detector


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_detector(tmp_path_factory.mktemp("models") / "detector"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_dataset(tmp_path_factory.mktemp("data") / "animals"))


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_writes_metrics_and_predictions(
    detector: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--model", detector, "--data", data, "--output_dir", str(tmp_path / "out"), "--batch_size", "2"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 0 <= metrics["AP"] <= metrics["AP50"] <= 1
    assert set(metrics["per_class"]) == {"fox", "raccoon"}
    assert (metrics["images"], metrics["split"], metrics["adapter"]) == (3, "test", None)
    predictions = json.loads((tmp_path / "out" / "predictions_test.json").read_text())
    assert {prediction["image_id"] for prediction in predictions} == {1, 2, 3}
    printed = capsys.readouterr().out
    assert "AP50" in printed and "raccoon" in printed and str(tmp_path / "out") in printed


def test_max_images(detector: str, data: str, tmp_path: Path) -> None:
    main(["--model", detector, "--data", data, "--output_dir", str(tmp_path), "--max_images", "1"])
    predictions = json.loads((tmp_path / "predictions_test.json").read_text())
    assert {prediction["image_id"] for prediction in predictions} == {1}


def test_an_adapter_changes_the_detections(detector: str, data: str, tmp_path: Path) -> None:
    model, _ = load_model(detector)
    sdpt_ext.tune(model, sdpt_ext.SDPTConfig(num_tokens=2))
    sdpt_ext.save_adapter(model, tmp_path / "adapter")
    common = ["--model", detector, "--data", data, "--max_images", "1"]
    main([*common, "--output_dir", str(tmp_path / "without")])
    main([*common, "--output_dir", str(tmp_path / "with"), "--adapter", str(tmp_path / "adapter")])
    assert json.loads((tmp_path / "with" / "metrics.json").read_text())["adapter"] == str(tmp_path / "adapter")
    without, adapted = ((tmp_path / name / "predictions_test.json").read_text() for name in ("without", "with"))
    assert without != adapted


def test_a_run_that_tuned_the_whole_model_is_no_adapter(
    detector: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_detector(tmp_path / "run" / "model")
    options = {"--model": detector, "--data": data, "--output_dir": str(tmp_path), "--adapter": str(tmp_path / "run")}
    message = error_of([part for option in options.items() for part in option], capsys)
    assert f"pass --model {tmp_path / 'run' / 'model'} without --adapter" in message


def test_a_checkpoint_that_is_none(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("hello")
    options = {"--model": "glip-tiny", "--checkpoint": str(tmp_path / "text.pth"), "--data": data}
    arguments = [part for option in options.items() for part in option]
    assert "text.pth is not a PyTorch checkpoint" in error_of([*arguments, "--output_dir", str(tmp_path)], capsys)


def test_a_model_of_another_architecture(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    options = {"--model": str(tmp_path), "--data": data, "--output_dir": str(tmp_path / "out")}
    message = error_of([part for option in options.items() for part in option], capsys)
    assert str(tmp_path) in message and "bert" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--split": "validation"}, "has no split 'validation': it has test"),
        ({"--data": "nowhere"}, "'nowhere' is neither a folder nor one of"),
        ({"--model": "gigantic"}, "no model 'gigantic'"),
        ({"--model": "glip-tiny"}, "glip-tiny needs its official weights"),
        ({"--model": "glip-tiny", "--checkpoint": "none.pth"}, "no checkpoint at none.pth"),
        ({"--adapter": "nowhere"}, "nowhere holds no adapter"),
        ({"--device": "abacus"}, "unknown device 'abacus'"),
        ({"--batch_size": "0"}, "--batch_size: 0 is less than 1"),
        ({"--classes_per_caption": "0"}, "--classes_per_caption: 0 is less than 1"),
        ({"--num_workers": "-1"}, "--num_workers: -1 is less than 0"),
        ({"--batchsize": "4"}, "unrecognized arguments: --batchsize 4"),
    ],
)
def test_bad_input(
    changes: dict[str, str],
    expected: str,
    detector: str,
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"--model": detector, "--data": data, "--output_dir": str(tmp_path / "out"), **changes}
    assert expected in error_of([part for option in options.items() for part in option], capsys)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_full_disk(
    detector: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], full_disk: None
) -> None:
    message = error_of(["--model", detector, "--data", data, "--output_dir", str(tmp_path)], capsys)
    assert "predictions_test.json" in message and "free some space" in message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--model", "--checkpoint", "--adapter", "--device", "--data", "--split", "--max_images"):
        assert flag in text
