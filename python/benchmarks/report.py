"""Tables on the terminal, the same numbers as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column of a table: the key of its values, its width and how they are printed."""

    key: str
    width: int
    format: str = ""

    def cell(self, row: dict[str, Any]) -> str:
        value = row.get(self.key)
        text = "-" if value is None else format(value, self.format)
        return text.ljust(self.width) if isinstance(value, str) else text.rjust(self.width)


def print_header(columns: Sequence[Column]) -> None:
    print(" ".join(column.key.rjust(column.width) for column in columns), flush=True)


def print_row(columns: Sequence[Column], row: dict[str, Any]) -> None:
    print(" ".join(column.cell(row) for column in columns), flush=True)


def write_json(path: Path | None, **report: Any) -> None:
    """Write the report and the command that makes it again, unless there is no path to write to."""
    if path is not None:
        command = shlex.join(["python", *sys.argv]).replace(f" --json {shlex.quote(str(path))}", "")
        path.write_text(json.dumps({"command": command, **report}, indent=2) + "\n")
