"""Measure a detector: `python -m sdpt_ext.evaluate --data DIR --output_dir OUT`; `--help` lists every flag."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpt_ext.cli import add_model_arguments, command, load_detector, whole_number
from sdpt_ext.data.atomic import write_json
from sdpt_ext.data.sources import DEFAULT_SOURCE, open_dataset
from sdpt_ext.evaluation.coco import metrics_table, save_predictions
from sdpt_ext.evaluation.inference import evaluate_model
from sdpt_ext.evaluation.sharing import process_group, rank_and_size


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m sdpt_ext.evaluate",
        description="Measure the average precision of a detector (COCO's definition, by pycocotools, or LVIS's).",
        epilog="Written to --output_dir: metrics.json (average precisions as fractions, per class too, and speed) and "
        "predictions_SPLIT.json (COCO results: boxes as x, y, width, height in pixels of the original image). "
        "Several GPUs share the images: torchrun --nproc_per_node 4 -m sdpt_ext.evaluate ...",
    )
    add_model_arguments(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default=DEFAULT_SOURCE,
        help="a folder with train/ val/ test/ and annotations/, or shapes:TASK, coco:DIR, lvis:DIR, odinw:NAME "
        "(default: %(default)s)",
    )
    data.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    data.add_argument(
        "--classes_per_caption",
        type=whole_number(1),
        metavar="N",
        help="classes that are asked for together (default: as many as one caption holds)",
    )
    data.add_argument("--max_images", type=whole_number(1), metavar="N", help="evaluate the first N images only")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", required=True, metavar="OUT", help="folder for the results; created if missing")
    run.add_argument("--batch_size", type=whole_number(1), default=8, metavar="N", help="default: %(default)s")
    run.add_argument(
        "--num_workers",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="extra processes that read images (default: none)",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate from the command line."""
    arguments = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    with process_group(arguments.device):
        _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(arguments.data, arguments.split)
    if arguments.max_images is not None:
        dataset = dataset.select(range(min(arguments.max_images, len(dataset))))
    model, processor = load_detector(arguments)
    started = time.perf_counter()
    metrics, predictions = evaluate_model(
        model,
        processor,
        dataset,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        classes_per_caption=arguments.classes_per_caption,
    )
    seconds = time.perf_counter() - started
    if rank_and_size()[0] > 0:
        return
    save_predictions(folder / f"predictions_{arguments.split}.json", predictions)
    write_json(folder / "metrics.json", {**metrics, **_circumstances(arguments, len(dataset), seconds)})
    print(f"{arguments.model} on {arguments.data}, {arguments.split} split, {len(dataset)} images")
    print(metrics_table(metrics))
    print(f"{len(dataset) / seconds:.1f} images per second; written to {folder}")


def _circumstances(arguments: argparse.Namespace, images: int, seconds: float) -> dict[str, Any]:
    options = {key: getattr(arguments, key) for key in ("model", "checkpoint", "adapter", "data", "split")}
    return {**options, "images": images, "seconds": seconds, "images_per_second": images / seconds}


if __name__ == "__main__":
    main()
