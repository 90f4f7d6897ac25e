"""Tune a detector: `python -m sdpt_ext.train [RECIPE.yaml] [--flag value ...]`; `--help` lists every flag."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sdpt_ext.cli import command
from sdpt_ext.training.recipe import parse_arguments
from sdpt_ext.training.run import run_training


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run a training from its command line."""
    run_training(parse_arguments(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
