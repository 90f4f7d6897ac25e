"""Files shipped with the package."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
BERT_VOCABULARY = ASSETS / "bert" / "vocab.txt"
"""The 30522 pieces of bert-base-uncased (Apache-2.0)."""
NANO_VOCABULARY = ASSETS / "nano" / "vocab.txt"
"""The 2048 pieces of the nano model (python/tools/build_nano_vocab.py)."""
