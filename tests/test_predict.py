from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sdpt_ext.predict import find_pictures, main, read_picture

from .random_detector import save_detector, save_pictures


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_detector(tmp_path_factory.mktemp("models") / "detector"))


def predict(detector: str, source: Path, output: Path, *more: str) -> None:
    main([str(source), "--text", "raccoon. fox", "--model", detector, "--output_dir", str(output), *more])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder(detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = save_pictures(tmp_path / "in")
    (tmp_path / "in" / "sub").mkdir()
    Image.new("L", (100, 90)).save(tmp_path / "in" / "sub" / "grey.bmp")
    predict(detector, tmp_path / "in", tmp_path / "out", "--threshold", "0.05")
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["names"] == ["raccoon", "fox"] and written["skipped"] == []
    assert [record["image"] for record in written["images"]] == [*names, "sub/grey.bmp"]
    for record in written["images"]:
        with Image.open(tmp_path / "out" / record["drawn"]) as drawn:
            assert drawn.size == (record["width"], record["height"])
        for found in record["detections"]:
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= record["width"] and 0 <= y1 <= y2 <= record["height"]
            assert found["name"] in ("raccoon", "fox") and 0.05 <= found["score"] <= 1
    assert sum(len(record["detections"]) for record in written["images"]) > 0
    assert "4 pictures" in capsys.readouterr().out


def test_more_names_than_one_caption_holds(detector: str, tmp_path: Path) -> None:
    (name,) = save_pictures(tmp_path / "in", 1)
    names = [f"creature number {number}" for number in range(90)]
    flags = ["--text", ". ".join(names), "--model", detector, "--output_dir", str(tmp_path / "out")]
    main([str(tmp_path / "in" / name), *flags, "--threshold", "0.05"])
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["names"] == names
    assert {found["name"] for found in written["images"][0]["detections"]} & {names[0], names[89]}


def test_one_picture_without_detections(detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = save_pictures(tmp_path / "in", 1)
    predict(detector, tmp_path / "in" / name, tmp_path / "out", "--threshold", "1")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["images"][0]["detections"] == []
    assert "nothing found" in capsys.readouterr().out


def test_damaged_pictures_are_skipped_and_named(
    detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "in", 2)
    whole = (tmp_path / "in" / "picture0.jpg").read_bytes()
    (tmp_path / "in" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "text.png").write_text("no picture")
    predict(detector, tmp_path / "in", tmp_path / "out")
    captured = capsys.readouterr()
    assert "2 pictures skipped" in captured.err and "cut.jpg" in captured.err and "text.png" in captured.err
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["image"] for entry in written["skipped"]] == ["cut.jpg", "text.png"]
    assert len(written["images"]) == 2


def test_nothing_readable(detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no picture")
    message = error_of(
        capsys, str(tmp_path / "text.png"), "--text", "fox", "--model", detector, "--output_dir", str(tmp_path / "out")
    )
    assert message == "error: none of the 1 pictures could be read"


@pytest.mark.parametrize(
    ("source", "text", "more", "expected"),
    [
        ("nowhere.jpg", "fox", (), "no such picture or folder: nowhere.jpg"),
        ("empty", "fox", (), "no pictures (.jpg, "),
        ("in", " . ", (), "--text"),
        ("in", "creature " * 300, (), "alone is longer than the 256 tokens"),
        ("in", ". ".join(f"creature number {i}" for i in range(90)), ("--classes_per_caption", "90"), "90 is too many"),
        ("in", "fox", ("--threshold", "2"), "--threshold: 2 is not between 0 and 1"),
        ("in", "fox", ("--adapter", "nowhere"), "nowhere holds no adapter"),
    ],
)
def test_bad_input(
    source: str,
    text: str,
    more: tuple[str, ...],
    expected: str,
    detector: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pictures(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, source, "--text", text, "--model", detector, "--output_dir", "out", *more)
    assert not Path("out", "predictions.json").exists()


def test_results_inside_the_folder_are_not_read_again(tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 2)
    save_pictures(tmp_path / "in" / "out", 2)
    root, files = find_pictures(tmp_path / "in", tmp_path / "in" / "out")
    assert root == tmp_path / "in"
    assert [file.name for file in files] == ["picture0.jpg", "picture1.jpg"]
    assert all(file.parent == root for file in files)


def test_a_picture_is_never_replaced_by_its_drawing(
    detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "in", 1)
    before = (tmp_path / "in" / "picture0.jpg").read_bytes()
    arguments = ("--text", "fox", "--model", detector, "--output_dir", str(tmp_path / "in"))
    assert "--output_dir" in error_of(capsys, str(tmp_path / "in" / "picture0.jpg"), *arguments)
    assert (tmp_path / "in" / "picture0.jpg").read_bytes() == before


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (20, 40)
