from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

from sdpt_ext.assets import NANO_VOCABULARY

TOOL = Path(__file__).parents[2] / "python" / "tools" / "build_nano_vocab.py"
DATA = Path(os.environ.get("SDPT_DATA", "../shared/data"))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the data sets in {DATA} (set SDPT_DATA)")
def test_shipped_vocabulary_is_what_the_tool_builds() -> None:
    build = runpy.run_path(str(TOOL))["build"]
    assert build(DATA) == NANO_VOCABULARY.read_text(encoding="utf-8").splitlines()
