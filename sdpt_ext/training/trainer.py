"""transformers' Trainer for detectors: AP as the evaluation, checkpoints that hold only what was trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from sdpt_ext.evaluation.inference import evaluate_model
from sdpt_ext.models.glip import GlipProcessor
from sdpt_ext.models.loading import Detector
from sdpt_ext.training.callbacks import LossProgressCallback
from sdpt_ext.training.disk import removed_on_error
from sdpt_ext.training.weights import load_weights, save_weights
from sdpt_ext.tuners import gates


class DetectionTrainer(Trainer):
    """Trains a detector whose forward returns `loss` and `loss_dict`.

    Args:
        model: the tuned model.
        args: transformers' arguments.
        method: the tuning method, which decides what a checkpoint holds.
        processor: turns images and class names into inputs and outputs into detections.
        train_dataset: items that `collator` turns into model inputs.
        val_dataset: what `evaluate` measures AP on; None if the run does not evaluate.
        collator: list of items -> model inputs.
        gate_learning_rate: of the prompts' gates; all else trains at that of `args`.
        classes_per_caption: see `evaluate_model`.
        callbacks: beside transformers' own.
    """

    def __init__(
        self,
        model: Detector,
        args: TrainingArguments,
        *,
        method: str,
        processor: GlipProcessor,
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None,
        collator: Callable[[list[Any]], dict[str, Any]],
        callbacks: list[TrainerCallback],
        gate_learning_rate: float,
        classes_per_caption: int | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=val_dataset,
            callbacks=callbacks,
        )
        # The losses are already normalised by their positives; a mean over accumulated batches is wanted.
        self.model_accepts_loss_kwargs = False
        self.method = method
        self.processor = processor
        self.classes_per_caption = classes_per_caption
        self.gate_learning_rate = gate_learning_rate
        self._loss_sums: dict[str, Tensor] = {}
        self._loss_count = 0
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LossProgressCallback())
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that transformers makes, with the gates in a group of their own."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        own = gates(self._bare_model())
        if is_new and own:
            moved = {id(gate) for gate in own}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
            optimizer.add_param_group({"params": own, "lr": self.gate_learning_rate, "weight_decay": 0.0})
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's loss; its parts are averaged until the next log.

        Raises:
            ValueError: the loss is not finite, so every later step would be wasted.
        """
        outputs = model(**inputs)
        if not self.args.fp16 and not torch.isfinite(outputs.loss):
            raise ValueError(
                f"the loss became {outputs.loss.item()} at step {self.state.global_step + 1}: lower --learning_rate "
                f"(now {self.args.learning_rate:g}) or set --max_grad_norm (now {self.args.max_grad_norm:g})"
            )
        for name, value in outputs.loss_dict.items():
            self._loss_sums[name] = self._loss_sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        self._loss_count += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._loss_count:
            logs |= {name: (value / self._loss_count).item() for name, value in self._loss_sums.items()}
            self._loss_sums, self._loss_count = {}, 0
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Average precisions on the validation split, as `eval_AP`, `eval_AP50`, ..."""
        start = time.perf_counter()
        metrics, _ = evaluate_model(
            self._bare_model(),
            self.processor,
            eval_dataset if eval_dataset is not None else self.eval_dataset,
            batch_size=self.args.eval_batch_size,
            device=self.args.device,
            progress=False,
            num_workers=self.args.dataloader_num_workers,
            classes_per_caption=self.classes_per_caption,
        )
        logs = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items() if isinstance(value, float)}
        logs[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def restore_finished(self, checkpoint: Path | None) -> bool:
        """Take state and best weights from a checkpoint after which no step is left; False if there is one to train."""
        if checkpoint is None:
            return False
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < (self.args.max_steps if self.args.max_steps > 0 else state.max_steps):
            return False
        self.state = state
        load_weights(self._bare_model(), self.method, Path(state.best_model_checkpoint or checkpoint))
        return True

    def _bare_model(self) -> Detector:
        model: Detector = self.accelerator.unwrap_model(self.model)
        return model

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            save_weights(self._bare_model(), self.method, Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with removed_on_error(folder):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self._bare_model(), self.method, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_weights(self._bare_model(), self.method, Path(str(self.state.best_model_checkpoint)))
