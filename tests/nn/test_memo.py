"""A remembered value is never that of other weights."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from sdpt_ext.nn import Memo


class Counted:
    """The weight times two, with the number of computations."""

    def __init__(self, rows: int = 64) -> None:
        self.layer = nn.Linear(64, rows).requires_grad_(False)
        self.memo: Memo[Tensor] = Memo()
        self.count = 0

    def __call__(self) -> Tensor:
        return self.memo(self.layer.parameters(), self._compute)

    def _compute(self) -> Tensor:
        self.count += 1
        return torch.cat([2 * parameter.flatten() for parameter in self.layer.parameters()])

    def expected(self) -> Tensor:
        return torch.cat([2 * parameter.flatten() for parameter in self.layer.parameters()])


@pytest.fixture
def counted() -> Iterator[Counted]:
    with torch.no_grad():
        yield Counted()


def test_computed_once(counted: Counted) -> None:
    assert counted() is counted()
    assert counted.count == 1


def in_place(layer: nn.Linear) -> None:
    layer.weight.mul_(3)


def behind_autograd(layer: nn.Linear) -> None:
    layer.weight.data.mul_(3)


def optimizer_step(layer: nn.Linear) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], lr=0.1).step()


def load_state_dict(layer: nn.Linear) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def assign_state_dict(layer: nn.Linear) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=True)


def replace_data(layer: nn.Linear) -> None:
    layer.bias.data = layer.bias.data + 1


def round_trip(layer: nn.Linear) -> None:
    """Back in the old precision, and likely in the old memory, with rounded numbers."""
    layer.bfloat16()
    layer.float()


def new_parameter(layer: nn.Linear) -> None:
    layer.bias = nn.Parameter(layer.bias + 1, requires_grad=False)


def other_precision(layer: nn.Linear) -> None:
    layer.double()


def other_flags(layer: nn.Linear) -> None:
    layer.requires_grad_(True)


CHANGES = [in_place, behind_autograd, optimizer_step, load_state_dict, assign_state_dict, replace_data, round_trip]
CHANGES += [new_parameter, other_precision, other_flags]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_noticed(counted: Counted, change: Callable[[nn.Linear], None]) -> None:
    counted()
    change(counted.layer)
    assert torch.equal(counted(), counted.expected()) and counted().dtype == counted.layer.weight.dtype
    assert counted.count == 2


def test_autocast_and_inference_mode_have_values_of_their_own(counted: Counted) -> None:
    counted()
    with torch.autocast("cpu", torch.bfloat16):
        counted()
    with torch.inference_mode():
        assert counted().is_inference()
    assert counted.count == 3 and not counted().is_inference()


def test_nothing_is_remembered_where_a_gradient_is_wanted(counted: Counted) -> None:
    counted()
    counted.layer.requires_grad_(True)
    with torch.enable_grad():
        counted().sum().backward()
        counted().sum().backward()
    assert counted.count == 3
    torch.testing.assert_close(counted.layer.weight.grad, torch.full((64, 64), 4.0))


def test_weights_of_inference_mode_have_no_version_to_go_by() -> None:
    with torch.inference_mode():
        counted = Counted()
        counted()
        counted.layer.weight[5, 5] += 1
        assert torch.equal(counted(), counted.expected())


def test_what_follows_from_nothing_known_is_not_remembered() -> None:
    memo: Memo[object] = Memo()
    assert memo([], object) is not memo([], object)


def test_copies_and_files_are_empty(counted: Counted) -> None:
    value = counted()
    for other in (copy.deepcopy(counted), pickle.loads(pickle.dumps(counted))):
        assert torch.equal(other(), value) and other.count == 2


def test_keeps_no_weight_alive(counted: Counted) -> None:
    counted()
    storage = weakref.ref(counted.layer.weight.untyped_storage())
    assert storage() is not None
    counted.layer.double()
    gc.collect()
    assert storage() is None
