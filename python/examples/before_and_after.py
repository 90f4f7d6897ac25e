"""Draw what a model finds without its adapter (above) and with it (below), on some test pictures.

python -m sdpt_ext.train --output_dir runs/default
python python/examples/before_and_after.py --adapter runs/default docs/before_and_after.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from sdpt_ext.cli import add_model_arguments, fraction, load_detector
from sdpt_ext.data.atomic import replacing
from sdpt_ext.data.sources import DEFAULT_SOURCE, open_dataset
from sdpt_ext.demo import ObjectFinder

_GAP = 8


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="picture to write")
    parser.add_argument("--data", default=DEFAULT_SOURCE, help="whose test split is shown (default: %(default)s)")
    parser.add_argument("--count", type=int, default=4, help="pictures beside each other (default: %(default)s)")
    parser.add_argument("--size", type=int, default=360, help="width of each in pixels (default: %(default)s)")
    parser.add_argument("--threshold", type=fraction, default=0.4, help="lowest score shown (default: %(default)s)")
    add_model_arguments(parser)
    return parser.parse_args()


def widened(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(width * picture.height / picture.width)))


def grid(columns: list[list[Image.Image]], width: int) -> Image.Image:
    """Pictures one below the other in every column, on white; all as wide as given."""
    scaled = [[widened(picture, width) for picture in column] for column in columns]
    heights = [max(row.height for row in rows) for rows in zip(*scaled, strict=True)]
    size = (len(columns) * (width + _GAP) - _GAP, sum(heights) + _GAP * (len(heights) - 1))
    canvas = Image.new("RGB", size, "white")
    for x, column in enumerate(scaled):
        for y, picture in enumerate(column):
            canvas.paste(picture, (x * (width + _GAP), sum(heights[:y]) + y * _GAP))
    return canvas


def main() -> None:
    arguments = parse_arguments()
    dataset = open_dataset(arguments.data, "test")
    finder = ObjectFinder(*load_detector(arguments), has_adapter=True)
    text = ". ".join(dataset.class_names)
    columns = []
    for index in range(arguments.count):
        picture = dataset[index]["image"]
        tuned, zero_shot = finder(widened(picture, arguments.size), text, arguments.threshold)
        columns.append([zero_shot[0], tuned[0]])
        print(f"picture {index + 1}: {zero_shot[1]} -> {tuned[1]}")
    with replacing(arguments.output) as temporary:
        grid(columns, arguments.size).save(temporary)


if __name__ == "__main__":
    main()
