"""Print a Markdown table of finished runs, runs that differ in their seed alone in one row.

python python/tools/results_table.py runs/*
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

_HEADER = (
    "| data | method | steps | trained | zero-shot AP | zero-shot AP50 | tuned AP | tuned AP50 | minutes | seeds |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def spread(values: list[float]) -> str:
    """Mean, and the range where there are several values; AP in points."""
    mean = sum(values) / len(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f}-{max(values):.1f})"


def row(key: tuple[str, str, int], runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    def points(part: str, name: str) -> str:
        return spread([100 * metrics[part][name] for _, metrics in runs])

    _, metrics = runs[0]
    trained = f"{metrics['trainable_params']:,} ({metrics['trainable_percent']:.2f} %)"
    minutes = spread([run_metrics["seconds"] / 60 for _, run_metrics in runs])
    seeds = ", ".join(str(config["seed"]) for config, _ in runs)
    scores = [points(part, name) for part in ("zero_shot", "tuned") for name in ("AP", "AP50")]
    return f"| {' | '.join([*map(str, key), trained, *scores, minutes, seeds])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of python -m sdpt_ext.train")
    groups: dict[tuple[str, str, int], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for folder in sorted(parser.parse_args().runs):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        data = config["data"]
        name = data if data.startswith("shapes:") else Path(data.removeprefix("coco:")).name
        groups[name, config["method"], config["max_steps"]].append((config, metrics))
    print(_HEADER)
    for key, runs in sorted(groups.items()):
        print(row(key, runs))


if __name__ == "__main__":
    main()
