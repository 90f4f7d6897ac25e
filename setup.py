"""Build script: the compiled operators where torch and a compiler are there, else pure Python."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "_build_backend"))

from extensions import build_arguments

setup(**build_arguments())
