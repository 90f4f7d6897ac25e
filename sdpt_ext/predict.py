"""Find and draw objects: `python -m sdpt_ext.predict IMAGE_OR_DIR --text "raccoon. fox" --output_dir OUT`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import nn
from tqdm.auto import tqdm

from sdpt_ext.cli import add_model_arguments, command, fraction, load_detector, whole_number
from sdpt_ext.data.atomic import replacing, write_json
from sdpt_ext.data.collate import EvalCollator
from sdpt_ext.evaluation.inference import detect_groups
from sdpt_ext.models.glip.captions import parse_names
from sdpt_ext.visualization import DrawnBox, draw_detections

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_DRAWN_AS_THEY_ARE = (".jpg", ".jpeg", ".png", ".webp")
PREDICTIONS = "predictions.json"


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m sdpt_ext.predict",
        description="Find objects by their names and draw them on the pictures.",
        epilog=f"Written to --output_dir: every picture with its boxes, names and scores, and {PREDICTIONS} "
        "(boxes as x1, y1, x2, y2 in pixels of the upright picture). Unreadable pictures are skipped and named.",
    )
    parser.add_argument("images", metavar="IMAGE_OR_DIR", help="a picture, or a folder that is searched for pictures")
    parser.add_argument(
        "--text", required=True, metavar="NAMES", help='what to look for, names separated by ". ", e.g. "raccoon. fox"'
    )
    parser.add_argument("--output_dir", required=True, metavar="OUT", help="folder for the results; created if missing")
    parser.add_argument(
        "--threshold", type=fraction, default=0.45, metavar="SCORE", help="lowest score shown (default: %(default)s)"
    )
    parser.add_argument(
        "--classes_per_caption",
        type=whole_number(1),
        metavar="N",
        help="names that are looked for together (default: as many as one caption holds)",
    )
    add_model_arguments(parser)
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Predict from the command line."""
    arguments = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    names, folder = parse_names(arguments.text), Path(arguments.output_dir)
    if not names:
        raise ValueError(f'--text {arguments.text!r} names nothing to look for; write for example "raccoon. fox"')
    root, files = find_pictures(Path(arguments.images), folder)
    if root.resolve() == folder.resolve():
        raise ValueError(f"--output_dir {folder} holds the pictures themselves, which would be drawn over")
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = load_detector(arguments)
    collator = EvalCollator(processor, names, arguments.classes_per_caption)
    records, skipped = [], []
    for file in tqdm(files, desc="predict", unit="image"):
        name = file.relative_to(root)
        try:
            picture = read_picture(file)
        except ValueError as error:
            skipped.append({"image": str(name), "reason": str(error)})
            continue
        boxes = find_objects(model, collator, picture, arguments.threshold)
        drawn = _save_drawing(draw_detections(picture, boxes), folder, name)
        records.append({"image": str(name), "drawn": str(drawn), **_record(picture, boxes)})
    write_json(folder / PREDICTIONS, {"names": names, "images": records, "skipped": skipped})
    _report(records, skipped, folder)


def find_pictures(source: Path, output_folder: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the pictures to look at, sorted; results of earlier runs are not.

    Raises:
        FileNotFoundError: `source` does not exist, or is a folder without pictures.
    """
    if source.is_file():
        return source.parent, [source]
    if not source.is_dir():
        raise FileNotFoundError(f"no such picture or folder: {source}")
    output_folder = output_folder.resolve()
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file() and output_folder not in path.resolve().parents
    ]
    if not files:
        raise FileNotFoundError(f"no pictures ({', '.join(_IMAGE_SUFFIXES)}) in {source}")
    return source, files


def read_picture(path: Path) -> Image.Image:
    """An RGB picture, turned upright as its camera says.

    Raises:
        ValueError: the file cannot be read as a picture.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def find_objects(model: nn.Module, collator: EvalCollator, picture: Image.Image, threshold: float) -> list[DrawnBox]:
    """Objects of the collator's classes with a score of at least `threshold`, best first."""
    (found,) = detect_groups(model, collator.processor, collator([{"image": picture, "image_id": 0}]))
    rows = zip(*(found[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
    names = collator.class_names
    return [DrawnBox(tuple(box), names[label - 1], label, score) for box, label, score in rows if score >= threshold]


def _save_drawing(drawing: Image.Image, folder: Path, name: Path) -> Path:
    """Save under the picture's own name in `folder`, as PNG if its format is a rare one; returns the name."""
    drawn = name if name.suffix.lower() in _DRAWN_AS_THEY_ARE else name.with_name(f"{name.name}.png")
    with replacing(folder / drawn) as temporary:
        drawing.save(temporary, quality=92)
    return drawn


def _record(picture: Image.Image, boxes: Sequence[DrawnBox]) -> dict[str, Any]:
    detections = [
        {"name": box.name, "score": round(box.score, 4), "box": [round(x, 2) for x in box.corners]} for box in boxes
    ]
    return {"width": picture.width, "height": picture.height, "detections": detections}


def _report(records: Sequence[dict[str, Any]], skipped: Sequence[dict[str, str]], folder: Path) -> None:
    for line in _warnings(skipped):
        print(line, file=sys.stderr)
    if not records:
        raise ValueError(f"none of the {len(skipped)} pictures could be read")
    counts = Counter(found["name"] for record in records for found in record["detections"])
    summary = ", ".join(f"{name}: {count}" for name, count in counts.most_common()) or "nothing found"
    print(f"{len(records)} pictures ({summary}) written to {folder}")


def _warnings(skipped: Sequence[dict[str, str]]) -> Iterator[str]:
    if skipped:
        yield f"warning: {len(skipped)} pictures skipped:"
        yield from (f"  {entry['reason']}" for entry in skipped)


if __name__ == "__main__":
    main()
