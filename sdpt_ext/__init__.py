"""SDPT: adapt fusion-based vision-language detectors with a prompt of under a megabyte."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_TUNERS = ("SDPTConfig", "adapter_disabled", "load_adapter", "save_adapter", "trainable_parameters", "tune")
_SUBMODULES = ("data", "evaluation", "models", "nn", "ops", "tuners")

__all__ = ["__version__", *_TUNERS, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _TUNERS:
        return getattr(importlib.import_module("sdpt_ext.tuners"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"sdpt_ext.{name}")
    raise AttributeError(f"module 'sdpt_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
