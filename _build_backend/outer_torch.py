"""Finds the torch of the environment that runs the installer.

An isolated build hides that environment's packages. Asking for torch as a build requirement instead would download
a second one, often of another version or for another device, and compile against that.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

_LOCATE = "import importlib.util as u; spec = u.find_spec('torch'); print(spec.origin if spec and spec.origin else '')"
_ISOLATION_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE")


def make_importable() -> None:
    """Append the folder that holds the outer torch to the search path, if torch is not importable yet."""
    if importlib.util.find_spec("torch") is not None:
        return
    folder = _outer_folder()
    if folder is not None:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _outer_folder() -> Path | None:
    environment = {name: value for name, value in os.environ.items() if name not in _ISOLATION_VARIABLES}
    # From another folder, since "" on the search path would be the project's.
    answer = subprocess.run(
        [sys.executable, "-c", _LOCATE], env=environment, cwd=os.sep, capture_output=True, text=True, check=False
    )
    origin = answer.stdout.strip()
    return Path(origin).parent.parent if origin else None
