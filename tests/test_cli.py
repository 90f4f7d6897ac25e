from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from sdpt_ext.cli import add_model_arguments, command, resolve_device
from sdpt_ext.data.atomic import write_text


@command
def fails_with(error: BaseException) -> None:
    raise error


# The decorator tells our own errors by the file that raises them; tests stand outside the package.
def test_an_operating_system_error_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fails_with(FileNotFoundError("no such folder: x"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such folder: x\n"


def test_the_package_s_own_error_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(resolve_device)("abacus")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: unknown device 'abacus': use auto, cpu, cuda or cuda:N\n"


def test_errors_of_libraries_keep_their_traceback() -> None:
    with pytest.raises(json.JSONDecodeError):
        command(json.loads)("{")
    with pytest.raises(ValueError):
        fails_with(ValueError("raised outside the package"))
    with pytest.raises(ZeroDivisionError):
        fails_with(ZeroDivisionError("a defect"))


def test_debugging_keeps_every_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDPT_EXT_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        fails_with(FileNotFoundError("no such folder: x"))


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fails_with(KeyboardInterrupt())
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command(write_text)(tmp_path / "file" / "metrics.json", "{}")
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device 'cuda:99' is not there"):
        resolve_device("cuda:99")


def test_model_arguments_have_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    assert vars(parser.parse_args([])) == {"model": "nano", "checkpoint": None, "adapter": None, "device": "auto"}
