"""The flags that all benchmarks share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def benchmark_parser(description: str | None, repeats: int = 7) -> argparse.ArgumentParser:
    """A parser with --threads, --repeats and --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores (%(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="measurements per number (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    return parser
