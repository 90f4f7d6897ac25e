"""One run from its arguments to its output folder: zero-shot AP, tuning, tuned AP, report."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from sdpt_ext.data.collate import TrainCollator
from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.sources import open_dataset
from sdpt_ext.evaluation.inference import evaluate_model
from sdpt_ext.models.glip import GlipForObjectDetection, GlipProcessor
from sdpt_ext.models.loading import load_model
from sdpt_ext.training.arguments import RunArguments
from sdpt_ext.training.callbacks import EpochCallback, InterruptCallback, ThroughputCallback
from sdpt_ext.training.curves import draw_curves
from sdpt_ext.training.outputs import AUTO_RESUME, CONFIG, CURVES, RunFolder
from sdpt_ext.training.recipe import ResolvedArguments
from sdpt_ext.training.report import final_table, peak_memory_mb
from sdpt_ext.training.seeding import SeededItems
from sdpt_ext.training.trainer import DetectionTrainer
from sdpt_ext.training.weights import export_weights
from sdpt_ext.tuners import adapter_disabled, apply_method, trainable_parameters


class Interrupted(SystemExit):
    """The run was stopped by a signal after it had saved a checkpoint; exits with 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@dataclass
class _Host:
    """The model, what feeds it, and the splits it is measured on."""

    model: GlipForObjectDetection
    processor: GlipProcessor
    train: DetectionImages
    val: DetectionImages | None
    test: DetectionImages


def run_training(arguments: ResolvedArguments) -> dict[str, Any]:
    """Run from zero-shot evaluation to the final table.

    Args:
        arguments: as `recipe.parse_arguments` makes them.

    Returns:
        The content of metrics.json.

    Raises:
        Interrupted: a signal stopped the training; the folder holds a checkpoint to resume from.
        OSError: something cannot be read or written.
        ValueError: arguments, data or model that do not fit each other, or a loss that is not finite.
    """
    started = time.perf_counter()
    options, training = arguments.run, arguments.training
    folder = RunFolder(str(training.output_dir))
    with training.main_process_first(local=False):
        checkpoint = folder.prepare(training.resume_from_checkpoint, options.overwrite)
    host = _load(options, training)
    set_seed(training.seed)
    apply_method(host.model, options.method, options.tuning_config())
    metrics = folder.read_metrics() if checkpoint else {}
    if "zero_shot" not in metrics:
        metrics = _zero_shot(host, options, training)
    if training.should_save:
        folder.write_config(arguments.values)
        folder.write_metrics(metrics)
    throughput = ThroughputCallback()
    history = _tune(host, options, training, throughput, checkpoint, folder)
    metrics["tuned"], predictions = _evaluate(host, host.test, training)
    metrics |= _costs(host.model, throughput, time.perf_counter() - started)
    if training.should_save:
        export_weights(host.model, host.processor, options.method, folder.path)
        folder.write_predictions(predictions)
        folder.write_metrics(metrics)
        draw_curves(folder.path / CURVES, history, metrics["zero_shot_val_AP"])
        print(f"\n{final_table(metrics)}\n\nwritten to {folder.path}")
    return metrics


def _load(options: RunArguments, training: TrainingArguments) -> _Host:
    model, processor = load_model(options.model, options.checkpoint)
    train = open_dataset(options.data, "train", shots=options.shots, seed=training.seed)
    test = open_dataset(options.data, options.test_split)
    val = None
    if training.eval_strategy != "no":
        val = open_dataset(options.data, options.val_split)
        val = val.select(range(min(len(val), options.max_val_images or len(val))))
    return _Host(model.to(training.device), processor, train, val, test)  # type: ignore[arg-type]


def _zero_shot(host: _Host, options: RunArguments, training: TrainingArguments) -> dict[str, Any]:
    # The method is already in place, so that options which do not fit the model fail before any long evaluation.
    with adapter_disabled(host.model):
        zero_shot, _ = _evaluate(host, host.test, training)
        if training.should_log:
            print(f"zero-shot AP on the {options.test_split} split: {zero_shot['AP']:.3f}", flush=True)
        val_ap = None if host.val is None else _evaluate(host, host.val, training)[0]["AP"]
    return {"zero_shot": zero_shot, "zero_shot_val_AP": val_ap}


def _evaluate(
    host: _Host, dataset: DetectionImages, training: TrainingArguments
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.mixed_precision)
    with torch.autocast(training.device.type, precision, enabled=precision is not None):
        return evaluate_model(
            host.model,
            host.processor,
            dataset,
            training.eval_batch_size,
            training.device,
            progress=training.should_log and not training.disable_tqdm,
            num_workers=training.dataloader_num_workers,
        )


def _tune(
    host: _Host,
    options: RunArguments,
    training: TrainingArguments,
    throughput: ThroughputCallback,
    checkpoint: Path | None,
    folder: RunFolder,
) -> list[dict[str, Any]]:
    """Train, leave the best weights in the model, and return the Trainer's log."""
    if trainable_parameters(host.model)[0] == 0:
        return []
    items = SeededItems(host.train, training.seed)
    interrupt = InterruptCallback()
    trainer = DetectionTrainer(
        host.model,
        training,
        method=options.method,
        processor=host.processor,
        train_dataset=items,
        val_dataset=host.val,
        collator=TrainCollator(host.processor, host.train.class_names),
        callbacks=[interrupt, EpochCallback(items), throughput],
    )
    if not trainer.restore_finished(checkpoint):
        with interrupt:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if interrupt.received is not None and trainer.state.global_step < trainer.state.max_steps:
        print(
            f"stopped by {signal.Signals(interrupt.received).name} at step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}. Continue with:\n"
            f"  python -m sdpt_ext.train {folder.path / CONFIG} --resume_from_checkpoint {AUTO_RESUME}"
        )
        raise Interrupted(interrupt.received)
    return trainer.state.log_history


def _costs(model: GlipForObjectDetection, throughput: ThroughputCallback, seconds: float) -> dict[str, Any]:
    trainable, total = trainable_parameters(model)
    return {
        "trainable_params": trainable,
        "total_params": total,
        "trainable_percent": 100 * trainable / total,
        "peak_memory_mb": peak_memory_mb(),
        "seconds": seconds,
        "train_seconds": throughput.seconds,
        "images_per_second": throughput.images_per_second,
    }
