"""Training a detector with any tuning method, on transformers' Trainer."""

from __future__ import annotations
