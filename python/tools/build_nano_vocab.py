"""Builds the WordPiece vocabulary of the nano model: 2048 pieces that cover any English class name.

    python python/tools/build_nano_vocab.py --data ../shared/data --output sdpt_ext/assets/nano/vocab.txt

Every word of a known class name is a piece of its own, so that the small text encoder sees whole words where it can
learn them; all other names are spelled with letters and with the most frequent words and word endings of BERT's
vocabulary, which is ordered by frequency.
"""

from __future__ import annotations

import argparse
import json
import re
import string
from collections.abc import Iterable
from pathlib import Path

from sdpt_ext.assets import BERT_VOCABULARY
from sdpt_ext.data.atomic import write_text
from sdpt_ext.data.shapes.vocabulary import words as shape_words
from sdpt_ext.models.glip.captions import clean_name

SIZE = 2048
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
COCO_NAMES = """
person bicycle car motorcycle airplane bus train truck boat traffic light fire hydrant stop sign parking meter bench
bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis
snowboard sports ball kite baseball bat glove skateboard surfboard tennis racket bottle wine glass cup fork knife
spoon bowl banana apple sandwich orange broccoli carrot hot dog pizza donut cake chair couch potted plant bed dining
table toilet tv laptop mouse remote keyboard cell phone microwave oven toaster sink refrigerator book clock vase
scissors teddy bear hair drier toothbrush
"""


def name_words(data: Path) -> list[str]:
    """Words of all category names of the data sets under ``data``, of COCO and of the generated objects."""
    found = set(COCO_NAMES.split()) | set(shape_words())
    for file in sorted(data.glob("*/annotations/*.json")):
        for category in json.loads(file.read_text())["categories"]:
            found |= set(re.findall(r"[a-z]+|[0-9]+", clean_name(category["name"]).lower()))
    return sorted(found)


def spelling_pieces() -> list[str]:
    """Single characters; punctuation never continues a word, so it has no "##" form."""
    alphanumeric = string.ascii_lowercase + string.digits
    return [*alphanumeric, *string.punctuation, *(f"##{character}" for character in alphanumeric)]


def frequent_pieces(bert: Iterable[str]) -> list[str]:
    """BERT's words and word endings by turns, most frequent first, so that both get an equal share of the rest."""
    pieces = [piece for piece in bert if re.fullmatch(r"(##)?[a-z]{2,}", piece)]
    endings = [piece for piece in pieces if piece.startswith("##")]
    words = [piece for piece in pieces if not piece.startswith("##") and len(piece) > 2]
    return [piece for pair in zip(words, endings, strict=False) for piece in pair]


def build(data: Path) -> list[str]:
    """The vocabulary, one piece per id."""
    bert = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()
    pieces = [*SPECIAL, *spelling_pieces(), *name_words(data), *frequent_pieces(bert)]
    return list(dict.fromkeys(pieces))[:SIZE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets with */annotations/*.json")
    parser.add_argument("--output", type=Path, required=True, help="vocabulary file to write")
    arguments = parser.parse_args()
    vocabulary = build(arguments.data)
    write_text(arguments.output, "\n".join(vocabulary) + "\n")
    print(f"{arguments.output}: {len(vocabulary)} pieces, {len(name_words(arguments.data))} from class names")


if __name__ == "__main__":
    main()
