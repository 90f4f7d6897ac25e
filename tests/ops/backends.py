"""Which backends the tests of an operator visit."""

from __future__ import annotations

import pytest

from sdpt_ext import _library

needs_library = pytest.mark.skipif(_library.library().path is None, reason="the operators are not compiled here")
BACKENDS = ["torch", pytest.param("ext", marks=needs_library)]
