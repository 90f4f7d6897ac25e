"""What happens around the training loop: interruption, progress, throughput, the epoch's number for the data."""

from __future__ import annotations

import signal
import sys
import threading
import time
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptCallback(TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into a checkpoint at the end of the running step, then stops.

    Used as a context manager around `Trainer.train`, so that the former handlers always come back.
    A second signal acts at once, as it would without this class.

    Attributes:
        received: number of the signal that asked to stop, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._stopping = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> InterruptCallback:
        # Python only lets the main thread set handlers; elsewhere the host program is in charge of signals.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        print(f"\n{signal.Signals(number).name}: saving a checkpoint after this step (again: stop at once)", flush=True)

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._stopping = self._anyone_stopped(args.device)
        if self._stopping:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # The Trainer also ends the epoch it breaks out of; its evaluation would be one that no full run has. Processes
        # share evaluations, so that what all have agreed on decides, not a signal that came to one since.
        if self._stopping and state.global_step < state.max_steps:
            control.should_save = control.should_evaluate = False
        return control

    def _anyone_stopped(self, device: torch.device) -> bool:
        """All processes must stop at the same step, else the others wait for gradients for ever."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.received is not None
        number = torch.tensor(self.received or 0, device=device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        self.received = int(number) or None
        return self.received is not None


class HasEpoch(Protocol):
    """Data whose random augmentation depends on the epoch's number."""

    def set_epoch(self, epoch: int) -> None: ...


class EpochCallback(TrainerCallback):
    """Tells the training data which epoch begins, also after a resume in the middle of one."""

    def __init__(self, data: HasEpoch) -> None:
        self.data = data

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.data.set_epoch(int(state.epoch or 0))


class ThroughputCallback(TrainerCallback):
    """Seconds and images of training alone, evaluations left out.

    Attributes:
        seconds: training time of this process's run (a resumed run counts from its resume).
        images: images that all processes trained on in that time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds, self._started, self._first_step = 0.0, time.perf_counter(), state.global_step

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.seconds -= kwargs["metrics"]["eval_runtime"]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds += time.perf_counter() - self._started
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.images = (state.global_step - self._first_step) * per_step

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


class LossProgressCallback(TrainerCallback):
    """A progress bar with the last loss, the last AP and the time left; plain lines when not on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started, self._first_step = time.perf_counter(), state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        entries = logs or {}
        if not state.is_world_process_zero or not {"loss", "eval_AP"} & set(entries):
            return
        for name, label, form in (("loss", "loss", "{:.3f}"), ("eval_AP", "val AP", "{:.3f}")):
            if name in entries:
                self._shown[label] = form.format(entries[name])
        if self._bar is not None:
            self._bar.set_postfix(self._shown)
        else:
            print(self._line(state), flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, state: TrainerState) -> str:
        done = state.global_step - self._first_step
        elapsed = time.perf_counter() - self._started
        left = elapsed / max(done, 1) * (state.max_steps - state.global_step)
        values = "  ".join(f"{label} {value}" for label, value in self._shown.items())
        return f"step {state.global_step}/{state.max_steps}  {values}  left {timedelta(seconds=round(left))}"
