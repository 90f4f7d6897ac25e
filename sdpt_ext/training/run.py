"""One run from its arguments to its output folder: zero-shot AP, tuning, tuned AP, report."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from sdpt_ext.data.collate import TrainCollator
from sdpt_ext.data.detection import DetectionImages
from sdpt_ext.data.image_size import fitting_image_size
from sdpt_ext.data.repeat_factors import repeat_factors
from sdpt_ext.data.sources import open_dataset
from sdpt_ext.evaluation.inference import evaluate_model
from sdpt_ext.models.loading import load_model
from sdpt_ext.training.callbacks import EpochCallback, InterruptCallback, ThroughputCallback
from sdpt_ext.training.curves import draw_curves
from sdpt_ext.training.examples import draw_examples
from sdpt_ext.training.feature_cache import FeatureCache, cached_backbone
from sdpt_ext.training.outputs import AUTO_RESUME, CONFIG, CURVES, EXAMPLES, RunFolder
from sdpt_ext.training.recipe import ResolvedArguments
from sdpt_ext.training.report import final_table, peak_memory_mb
from sdpt_ext.training.seeding import SeededItems
from sdpt_ext.training.trainer import DetectionTrainer
from sdpt_ext.training.weights import export_weights
from sdpt_ext.tuners import adapter_disabled, apply_method, trainable_parameters

# Below this many uses of one training picture (at one scale and flip), keeping it costs more memory than it saves time.
_WORTH_KEEPING = 2.0


class Interrupted(SystemExit):
    """The run was stopped by a signal after it had saved a checkpoint; exits with 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


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
    run = _Run(arguments)
    with run.cached_features():
        run.measure_zero_shot()
        history = run.tune()
        run.measure_tuned()
    run.add_costs(time.perf_counter() - started)
    run.write_outputs(history)
    return run.metrics


class _Run:
    """The parts of one run, ready to be measured and trained: folder, model with its method in place, splits."""

    def __init__(self, arguments: ResolvedArguments) -> None:
        self.options, self.training, self.values = arguments.run, arguments.training, arguments.values
        self.folder = RunFolder(str(self.training.output_dir))
        with self.training.main_process_first(local=False):
            self.checkpoint = self.folder.prepare(self.training.resume_from_checkpoint, self.options.overwrite)
        self.metrics = self.folder.read_metrics() if self.checkpoint else {}
        self.predictions: dict[str, list[dict[str, Any]]] = {}
        self.throughput = ThroughputCallback()
        self._open_splits()
        self.model, self.processor = load_model(self.options.model, self.options.checkpoint)
        self._set_image_size()
        self.model.to(self.training.device)  # type: ignore[arg-type]
        set_seed(self.training.seed)
        # Before the long zero-shot evaluation, so that options which do not fit the model fail at once.
        apply_method(self.model, self.options.method, self.options.tuning_config())
        unused = self.options.without_effect()
        if unused and self.training.should_log:
            print(f"{', '.join(unused)}: without effect on --method {self.options.method}", flush=True)

    def _open_splits(self) -> None:
        options = self.options
        self.train = open_dataset(options.data, "train", shots=options.shots, seed=self.training.seed)
        self.test = open_dataset(options.data, options.test_split)
        self.val: DetectionImages | None = None
        if self.training.eval_strategy != "no":
            val = open_dataset(options.data, options.val_split)
            self.val = val.select(range(min(len(val), options.max_val_images or len(val))))

    def _set_image_size(self) -> None:
        config, wanted = self.processor.config, self.options.image_size
        size = fitting_image_size(self.train, config) if wanted == "auto" else int(wanted)
        self.processor.config = config.with_image_size(size)
        if wanted == "auto" and size != config.shortest_edge and self.training.should_log:
            print(
                f"small objects: pictures are resized to {size} pixels instead of {config.shortest_edge} (short side); "
                f"--image_size {config.shortest_edge} is faster",
                flush=True,
            )

    def cached_features(self) -> contextlib.AbstractContextManager[None]:
        """The backbone with its cache, if the run has one.

        Raises:
            ValueError: a cache was asked for and the model's backbone can't have one.
        """
        options, backbone = self.options, getattr(self.model, "backbone", None)
        if backbone is None:
            if options.cache_features not in ("auto", "off"):
                raise ValueError(f"--cache_features {options.cache_features} needs a GLIP; set it to off")
            return contextlib.nullcontext()
        trains = any(parameter.requires_grad for parameter in backbone.parameters())
        if options.cache_features == "auto":
            if trains or self.training.device.type != "cpu":
                return contextlib.nullcontext()
            return cached_backbone(
                backbone, FeatureCache(options.cache_limit_mb), self._picture_uses() >= _WORTH_KEEPING
            )
        if options.cache_features == "off":
            return contextlib.nullcontext()
        return cached_backbone(backbone, FeatureCache(options.cache_limit_mb, Path(options.cache_features)))

    def _picture_uses(self) -> float:
        """How often training will see one image at one scale and flip."""
        training = self.training
        epochs = training.num_train_epochs
        if training.max_steps > 0:
            per_step = training.train_batch_size * training.gradient_accumulation_steps
            epochs = training.max_steps * per_step / len(self.train)
        return epochs / (2 * len(self.processor.config.train_shortest_edges))

    def measure_zero_shot(self) -> None:
        """AP before training, unless the interrupted run that this one continues has measured it."""
        if "zero_shot" not in self.metrics:
            with adapter_disabled(self.model):
                zero_shot, self.predictions["zero-shot"] = self._evaluate(self.test)
                if self.training.should_log:
                    print(f"zero-shot AP on the {self.options.test_split} split: {zero_shot['AP']:.3f}", flush=True)
                val_ap = None if self.val is None else self._evaluate(self.val)[0]["AP"]
            self.metrics = {"zero_shot": zero_shot, "zero_shot_val_AP": val_ap}
        if self.training.should_save:
            self.folder.write_config(self.values)
            self.folder.write_metrics(self.metrics)

    def measure_tuned(self) -> None:
        """AP after training."""
        self.metrics["tuned"], self.predictions["tuned"] = self._evaluate(self.test)

    def _evaluate(self, dataset: DetectionImages) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        training = self.training
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.mixed_precision)
        with torch.autocast(training.device.type, precision, enabled=precision is not None):
            return evaluate_model(
                self.model,
                self.processor,
                dataset,
                training.eval_batch_size,
                training.device,
                progress=training.should_log and not training.disable_tqdm,
                num_workers=training.dataloader_num_workers,
                classes_per_caption=self.options.classes_per_caption,
            )

    def tune(self) -> list[dict[str, Any]]:
        """Train, leave the best weights in the model, and return the Trainer's log.

        Raises:
            Interrupted: a signal stopped the training.
        """
        if trainable_parameters(self.model)[0] == 0:
            return []
        factors = repeat_factors(self.train, self.options.repeat_threshold)
        items, interrupt = SeededItems(self.train, self.training.seed, factors), InterruptCallback()
        trainer = DetectionTrainer(
            self.model,
            self.training,
            method=self.options.method,
            processor=self.processor,
            train_dataset=items,
            val_dataset=self.val,
            collator=TrainCollator(
                self.processor, self.train.class_names, classes_per_caption=self.options.classes_per_caption
            ),
            callbacks=[interrupt, EpochCallback(items), self.throughput],
            classes_per_caption=self.options.classes_per_caption,
            gate_learning_rate=self.options.gate_learning_rate,
        )
        if not trainer.restore_finished(self.checkpoint):
            with interrupt:
                trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        if interrupt.received is not None and trainer.state.global_step < trainer.state.max_steps:
            print(
                f"stopped by {signal.Signals(interrupt.received).name} at step {trainer.state.global_step} of "
                f"{trainer.state.max_steps}. Continue with:\n"
                f"  python -m sdpt_ext.train {self.folder.path / CONFIG} --resume_from_checkpoint {AUTO_RESUME}"
            )
            raise Interrupted(interrupt.received)
        return trainer.state.log_history

    def add_costs(self, seconds: float) -> None:
        """Sizes, time and memory; a finished run that is only measured again keeps its times."""
        trainable, total = trainable_parameters(self.model)
        self.metrics |= {
            "trainable_params": trainable,
            "total_params": total,
            "trainable_percent": 100 * trainable / total,
            "peak_memory_mb": peak_memory_mb(),
        }
        if self.throughput.images or "seconds" not in self.metrics:
            self.metrics |= {
                "seconds": seconds,
                "train_seconds": self.throughput.seconds,
                "images_per_second": self.throughput.images_per_second,
            }

    def write_outputs(self, history: list[dict[str, Any]]) -> None:
        """Everything that the folder of a finished run holds, and the final table on the terminal."""
        if not self.training.should_save:
            return
        export_weights(self.model, self.processor, self.options.method, self.folder.path)
        self.folder.write_predictions(self.predictions["tuned"])
        self.folder.write_metrics(self.metrics)
        draw_curves(self.folder.path / CURVES, history, self.metrics["zero_shot_val_AP"])
        draw_examples(self.folder.path / EXAMPLES, self.test, self.predictions)
        print(f"\n{final_table(self.metrics)}\n\nwritten to {self.folder.path}")
