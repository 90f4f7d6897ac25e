"""Tune a detector with SDPT in a training loop of your own.

python python/examples/training_loop.py [--model MODEL] [--data DATA] [--steps 60] [--adapter FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import sdpt_ext
from sdpt_ext.data.collate import TrainCollator
from sdpt_ext.data.sources import DEFAULT_SOURCE, open_dataset
from sdpt_ext.evaluation.inference import evaluate_model
from sdpt_ext.models.loading import load_model
from sdpt_ext.tuners import gates


def endless(batches: DataLoader[Any]) -> Iterator[dict[str, Any]]:
    """Epoch after epoch, each in an order and with scales and mirroring of its own."""
    while True:
        yield from batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="as --model of python -m sdpt_ext.train")
    parser.add_argument("--data", default=DEFAULT_SOURCE, help="as --data of python -m sdpt_ext.train")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=0.4, help="0.4 suits nano; start lower elsewhere")
    parser.add_argument("--adapter", default="my_adapter", help="folder to write")
    options = parser.parse_args()
    torch.manual_seed(42)
    train, test = open_dataset(options.data, "train"), open_dataset(options.data, "test")

    model, processor = load_model(options.model)
    zero_shot, _ = evaluate_model(model, processor, test)
    sdpt_ext.tune(model, sdpt_ext.SDPTConfig(num_tokens=10, gate="zero"))
    trainable, total = sdpt_ext.trainable_parameters(model)
    print(f"{trainable:,} of {total:,} parameters train")

    # A gate ends far smaller than a prompt, and needs smaller steps.
    prompts = [value for name, value in model.named_parameters() if name.endswith("prototype_tokens")]
    groups: list[dict[str, Any]] = [{"params": prompts}, {"params": gates(model), "lr": 0.01}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    batches = DataLoader(
        train, options.batch_size, shuffle=True, collate_fn=TrainCollator(processor, train.class_names)
    )
    model.train()
    for batch in tqdm(islice(endless(batches), options.steps), total=options.steps):
        model(**batch).loss.backward()
        clip_grad_norm_(prompts, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    tuned, _ = evaluate_model(model, processor, test)
    sdpt_ext.save_adapter(model, options.adapter)
    print(f"AP {zero_shot['AP']:.3f} zero-shot, {tuned['AP']:.3f} tuned; the adapter is in {options.adapter}")


if __name__ == "__main__":
    main()
