"""Every default of a training run, in one place: shared, then by method, by kind of data and for the nano model.

Later tables win over earlier ones; a recipe and the command line win over all of them.
Keys are the names of flags (`RunArguments` and transformers' `TrainingArguments`).
"""

from __future__ import annotations

from typing import Any

SHARED: dict[str, Any] = {
    "seed": 42,
    "max_steps": 600,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "optim": "adamw_torch",
    "weight_decay": 1e-4,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "logging_steps": 10,
    "logging_first_step": True,
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "AP",
    "greater_is_better": True,
    "report_to": ["tensorboard"],
    "remove_unused_columns": False,
}

BY_METHOD: dict[str, dict[str, Any]] = {
    "sdpt": {"learning_rate": 5e-2, "weight_decay": 0.0},
    "vpt": {"learning_rate": 5e-2, "weight_decay": 0.0},
    "maple": {"learning_rate": 5e-3, "weight_decay": 0.0},
    "upt": {"learning_rate": 5e-3, "weight_decay": 0.0},
    "text_prompt": {"learning_rate": 5e-2, "weight_decay": 0.0},
    "coop": {"learning_rate": 2e-3, "weight_decay": 0.0},
    "adapter": {"learning_rate": 1e-3, "weight_decay": 0.0},
    "lora": {"learning_rate": 1e-3, "weight_decay": 0.0},
    # A step that trains every weight costs about four of those that leave the backbone alone, and fewer are needed.
    "full": {"learning_rate": 1e-4, "max_steps": 300},
    "linear_probe": {"learning_rate": 1e-3},
    "bitfit": {"learning_rate": 1e-3, "weight_decay": 0.0},
}

# Keyed by the part of --data before the colon; a plain folder counts as "coco".
BY_DATA: dict[str, dict[str, Any]] = {
    "shapes": {"max_steps": 150},
    "coco": {},
    "lvis": {"repeat_threshold": 1e-3},
    "odinw": {},
}


# The shipped model is small and has seen few pictures: it has more to learn, and takes larger steps well. Prompts that
# do not compete with its few tokens for attention learn raccoon, bccd and aquarium better in the same number of steps.
FOR_NANO: dict[str, dict[str, Any]] = {
    "sdpt": {"learning_rate": 0.4, "gate": "zero"},
    "vpt": {"learning_rate": 0.4, "gate": "zero"},
    "maple": {"learning_rate": 5e-2},  # behind a gate it learned the default task worse
    "upt": {"learning_rate": 1e-2, "gate": "zero"},
    "text_prompt": {"learning_rate": 5e-2},
    "coop": {"learning_rate": 5e-2},
    "adapter": {"learning_rate": 2e-2},
    "lora": {"learning_rate": 5e-3},
    "full": {"learning_rate": 5e-4},
    "linear_probe": {"learning_rate": 5e-3},
    "bitfit": {"learning_rate": 5e-3},
}


def data_kind(data: str) -> str:
    """The table row of a data specification: "shapes:night" -> "shapes", a folder -> "coco"."""
    kind = data.partition(":")[0]
    return kind if kind in BY_DATA else "coco"


def defaults_for(method: str, data: str, model: str = "") -> dict[str, Any]:
    """Flags of a run that names only its method, its data and its model."""
    for_model = FOR_NANO.get(method, {}) if model == "nano" else {}
    return {**SHARED, **BY_METHOD.get(method, {}), **BY_DATA[data_kind(data)], **for_model}
