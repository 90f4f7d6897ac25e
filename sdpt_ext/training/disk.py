"""Folders written whole, and a full disk reported as what it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def clear_write_errors(target: Path) -> Iterator[None]:
    """Turns any library's complaint about an unwritable file into an OSError that names `target` and the free space."""
    try:
        yield
    except Exception as error:
        # torch.save and safetensors report a full disk under types of their own.
        from_torch = any(name in str(error) for name in ("inline_container", "PytorchStreamWriter"))
        if not (isinstance(error, OSError | SafetensorError) or from_torch):
            raise
        reason = str(error).partition("\n")[0]
        free = shutil.disk_usage(target.parent).free // 2**20
        raise OSError(
            f"cannot write {target} ({free} MB free on its disk): {reason}; free some space there or choose another "
            "--output_dir"
        ) from error


@contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Removes a new `folder` that could not be finished, be it for a full disk or an impatient Ctrl-C."""
    existed = folder.exists()
    try:
        with clear_write_errors(folder):
            yield
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that becomes `target` when the block ends without an error."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with clear_write_errors(target), removed_on_error(partial):
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
