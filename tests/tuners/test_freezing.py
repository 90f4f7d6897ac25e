"""Frozen parts stay in evaluation mode while a model trains, whatever wraps, copies or saves the model."""

from __future__ import annotations

import copy
import io

import torch
from torch import Tensor, nn

from sdpt_ext.tuners.freezing import freeze, trainable_parameters


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def tuned(host_dropout: bool = False) -> Detector:
    model = Detector()
    freeze(model, lambda name: name.startswith("head."), host_dropout)
    return model


def drops(model: nn.Module) -> bool:
    """Whether dropout is on in the first forward after ``train()``."""
    model.train()
    x = torch.ones(64, 4)
    return not torch.equal(model(x), model(x))


def test_trainable_parameters() -> None:
    assert trainable_parameters(tuned()) == (10, 30)


def test_training_mode() -> None:
    model = tuned()
    assert not drops(model)
    assert model.training and model.head.training and not model.body[1].training
    assert drops(tuned(host_dropout=True))


def test_the_last_choice_holds() -> None:
    model = tuned()
    assert not drops(model)
    freeze(model, host_dropout=True)
    assert drops(model)
    freeze(model)
    assert not drops(model)


def test_wrapped_copied_and_saved_models() -> None:
    model = tuned()
    assert not drops(nn.Sequential(model))
    assert not drops(copy.deepcopy(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert not drops(torch.load(file, weights_only=False))
