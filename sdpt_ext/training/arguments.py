"""The flags of a training run: model, data and method are ours, everything else is transformers' own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from transformers import TrainingArguments

from sdpt_ext.data.sources import DEFAULT_SOURCE
from sdpt_ext.tuners import METHODS, TuningConfig, config_class
from sdpt_ext.tuners.sdpt import Init, TextPrompts

_TUNING_FLAGS = ("num_tokens", "text_prompts", "layers", "init", "gate", "gate_learning_rate", "rank")


@dataclass
class TrainingFlags(TrainingArguments):
    """`TrainingArguments` under a heading of their own in the help."""

    _argument_group_name = "training (transformers' TrainingArguments)"


@dataclass
class RunArguments:
    """Flags of `python -m sdpt_ext.train` beside those of transformers' `TrainingArguments`."""

    _argument_group_name = "model, data and method"

    model: str = field(
        default="nano",
        metadata={"help": "nano | glip-tiny | glip-large | a folder or Hub id of a GLIP or (MM) Grounding DINO."},
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Official GLIP checkpoint (.pth) for glip-tiny or glip-large."}
    )
    data: str = field(
        default=DEFAULT_SOURCE,
        metadata={
            "help": "A folder with train/ val/ test/ and annotations/, or shapes:TASK, coco:DIR, lvis:DIR, odinw:NAME."
        },
    )
    shots: int | None = field(
        default=None, metadata={"help": "Train on K images per class, drawn with --seed; all images if not given."}
    )
    val_split: str = field(default="val", metadata={"help": "The split that is measured while training."})
    test_split: str = field(
        default="test", metadata={"help": "The split of the final numbers, measured before and after training."}
    )
    max_val_images: int | None = field(
        default=None, metadata={"help": "Measure on this many images of the validation split; all if not given."}
    )
    classes_per_caption: int | None = field(
        default=None, metadata={"help": "Most classes that a caption names; as many as it holds if not given."}
    )
    repeat_threshold: float = field(
        default=1.0,
        metadata={
            "help": "Train more often on images with a class that fewer than this share of the images show: by "
            "sqrt(threshold / share), as LVIS's baselines (default for lvis: 0.001); 0: on all equally often."
        },
    )
    image_size: str = field(
        default="auto",
        metadata={
            "help": "Short side of the pictures in pixels, or auto: the model's own, and up to twice as much where "
            "most objects would be smaller than 50 pixels."
        },
    )
    method: str = field(default="sdpt", metadata={"help": "How the model is tuned.", "choices": list(METHODS)})
    num_tokens: int = field(
        default=10, metadata={"help": "SDPT, VPT, MaPLe, UPT: prompts per fusion layer; CoOp: context vectors."}
    )
    text_prompts: TextPrompts = field(
        default="visible",
        metadata={"help": "SDPT: whether image tokens attend to the text-side prompts (masked: the released code)."},
    )
    layers: list[int] | None = field(
        default=None,
        metadata={"help": "SDPT, VPT, MaPLe, UPT: fusion layers that get prompts, e.g. 0 1; all if not given."},
    )
    init: Init = field(default="uniform", metadata={"help": "SDPT: how the prompts are initialised."})
    gate: Literal["none", "zero"] = field(
        default="none",
        metadata={
            "help": "SDPT, VPT, MaPLe, UPT: with zero, what the prompts add is multiplied by factors that start at "
            "zero, so that step 0 equals the zero-shot model exactly (default for nano: zero, but for MaPLe)."
        },
    )
    gate_learning_rate: float = field(
        default=0.01, metadata={"help": "Learning rate of what --gate adds, which is far smaller than a prompt."}
    )
    rank: int = field(default=8, metadata={"help": "LoRA: rank of the updates; adapter: width of the bottlenecks."})
    host_dropout: bool = field(default=False, metadata={"help": "Keep dropout of the frozen parts on while training."})
    cache_features: str = field(
        default="auto",
        metadata={
            "help": "Keep the frozen backbone's output: auto (on a CPU, in memory, for pictures that come back), off, "
            "or a folder that later runs share. Results do not change."
        },
    )
    cache_limit_mb: int = field(default=1024, metadata={"help": "Size at which --cache_features stops storing."})
    overwrite: bool = field(
        default=False, metadata={"help": "Start again in an --output_dir that already holds a run; its files go."}
    )

    def __post_init__(self) -> None:
        for name in ("num_tokens", "rank", "shots", "max_val_images", "classes_per_caption"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1")
        if not 0 <= self.repeat_threshold <= 1:
            raise ValueError(f"--repeat_threshold is {self.repeat_threshold:g}; it must lie between 0 and 1")
        if self.image_size != "auto" and not (self.image_size.isdecimal() and int(self.image_size) >= 32):
            raise ValueError(f"--image_size is {self.image_size}; it must be auto or a number of pixels, at least 32")

    def tuning_config(self) -> TuningConfig:
        """The options of `sdpt_ext.tuners.apply_method`."""
        gate = None if self.gate == "none" else self.gate
        values = {**vars(self), "gate": gate, "width": self.rank, "alpha": 2 * self.rank}
        kind = config_class(self.method)
        return kind(**{option.name: values[option.name] for option in fields(kind)})

    def without_effect(self) -> list[str]:
        """The flags that were set and say nothing to the method and the other flags."""
        options = {option.name for option in fields(config_class(self.method))}
        implied = {"rank": "width" in options, "gate_learning_rate": "gate" in options and self.gate != "none"}
        known = options | {name for name, is_used in implied.items() if is_used}
        unknown = [flag for flag in fields(self) if flag.name in _TUNING_FLAGS and flag.name not in known]
        return [f"--{flag.name}" for flag in unknown if getattr(self, flag.name) != flag.default]
