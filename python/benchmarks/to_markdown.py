"""Tables for the docs from what the benchmarks wrote.

python python/benchmarks/to_markdown.py fusion.json model.json > docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_SHARES = ("of_peak", "of_time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", help="JSON files of benchmarks")
    print("# Benchmarks\n\nWritten by `python/benchmarks/to_markdown.py`. Ratios compare numbers of one run.")
    for path in parser.parse_args().reports:
        print("\n" + section(json.loads(path.read_text())))


def section(report: dict[str, Any]) -> str:
    """One table, under its command and hardware."""
    rows = report["results"]
    keys = [key for key in rows[0] if any(row.get(key) is not None for row in rows)]
    lines = [" | ".join(cell(key, row.get(key)) for key in keys) for row in rows]
    head = [f"## `{report['command']}`", "", f"{report['hardware']}; matrix product: {peak(report)} GFLOP/s.", ""]
    return "\n".join([*head, " | ".join(keys), " | ".join("---" for _ in keys), *lines])


def peak(report: dict[str, Any]) -> str:
    measured = report["matmul_gflops"]
    if isinstance(measured, dict):
        return ", ".join(f"{value:.0f} ({dtype})" for dtype, value in measured.items())
    return f"{measured:.0f}"


def cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.0%}" if key in _SHARES else f"{value:.3g}" if value < 100 else f"{value:.0f}"


if __name__ == "__main__":
    main()
