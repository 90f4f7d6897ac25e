"""A whole detector gives on a GPU what it gives on a CPU: tuned, trained for a step, and evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sdpt_ext
from sdpt_ext.data.collate import TrainCollator
from sdpt_ext.data.sources import open_dataset
from sdpt_ext.evaluation.inference import evaluate_model
from sdpt_ext.models.loading import load_model

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
DEVICE = "cuda"


def tuned_nano() -> tuple[Any, Any]:
    model, processor = load_model("nano")
    torch.manual_seed(0)
    return sdpt_ext.tune(model, sdpt_ext.SDPTConfig()), processor


def moved(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    return value.to(device)


def losses_and_gradients(device: str) -> dict[str, Tensor]:
    model, processor = tuned_nano()
    scenes = open_dataset("shapes:night", "val")
    batch = TrainCollator(processor, scenes.class_names, augment=False)([scenes[i] for i in range(4)])
    output = model.to(device).train()(**moved(dict(batch), device))
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().cpu() for name, value in {**output.loss_dict, **gradients}.items()}


def test_training_step() -> None:
    expected = losses_and_gradients("cpu")
    assert any(name.endswith("prototype_tokens") for name in expected)
    found = losses_and_gradients(DEVICE)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-3 * float(value.abs().max()), msg=name)


def test_average_precision() -> None:
    model, processor = tuned_nano()
    scenes = open_dataset("shapes:night", "val")
    on_cpu, on_gpu = (evaluate_model(model, processor, scenes, device=d, progress=False)[0] for d in ("cpu", DEVICE))
    assert on_cpu["AP"] > 0.1
    assert on_gpu["AP"] == pytest.approx(on_cpu["AP"], abs=2e-3)
