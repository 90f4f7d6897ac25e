"""Files written whole: a temporary file in the same folder, then a rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it to ``path`` when the block ends without an error.

    On any error the temporary file is removed and ``path`` keeps its former content.

    Raises:
        OSError: naming ``path`` and the folder, for example when the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because writers such as matplotlib choose their format by it.
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        # mkstemp makes private files; the result should be as readable as an ordinary one.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise _with_path(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _with_path(error: OSError, target: Path) -> OSError:
    reason = error.strerror or str(error)
    hint = (
        f"; free some space in {target.parent} or choose another output folder" if error.errno == errno.ENOSPC else ""
    )
    return type(error)(error.errno, f"cannot write {target}: {reason}{hint}")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes ``data`` to ``path`` whole or not at all; raises OSError naming ``path``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 ``text`` to ``path`` whole or not at all; raises OSError naming ``path``."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes ``obj`` as indented JSON; raises before touching ``path`` when it can't be represented."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")
