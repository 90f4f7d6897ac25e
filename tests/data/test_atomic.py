from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from sdpt_ext.data import atomic


def test_writes_whole_files_and_makes_folders(tmp_path: Path) -> None:
    file = tmp_path / "new" / "metrics.json"
    atomic.write_json(file, {"AP": 0.5, "name": "é"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"AP": 0.5, "name": "é"}
    atomic.write_text(file, "later")
    assert file.read_text() == "later"
    assert list(file.parent.iterdir()) == [file]


def test_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "atomic", "x")
    (tmp_path / "ordinary").write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_failing_block_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "kept.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), atomic.replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_unserialisable_object_touches_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "a.json", {"x": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_names_file_and_fix(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"old")
    message = r"cannot write .*weights\.bin: No space left.*free some space in"
    with pytest.raises(OSError, match=message) as caught, atomic.replacing(file) as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 10)
    assert caught.value.errno == errno.ENOSPC
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        atomic.write_text(tmp_path / "file" / "x.json", "{}")
