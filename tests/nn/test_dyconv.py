"""DyConv against the official numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdpt_ext.nn import DyConv

from ..golden import cases


def official_dyconv(dtype: torch.dtype) -> DyConv:
    module = DyConv(256)
    cases.fill_parameters(module, "dyconv.")
    return module.to(dtype).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["c1", "c2"])
def test_golden(name: str, dtype: torch.dtype, tolerance: float) -> None:
    meta, arrays = cases.load(f"c_dyconv_{name}")
    levels = [cases.inputs(f"{name}.q{i}", (meta["B"], 256, *size), dtype) for i, size in enumerate(meta["sizes"])]
    module = official_dyconv(dtype)
    with torch.no_grad():
        for i, level in enumerate(module(levels)):
            cases.assert_close(level, arrays, f"out_q{i}", tolerance)
        for key, value in intermediates(module, levels).items():
            cases.assert_close(value, arrays, f"level1.{key}", tolerance)


def intermediates(module: DyConv, levels: list[Tensor]) -> dict[str, Tensor]:
    from_above, same, from_below = module.DyConv
    offset_mask = module.offset(levels[1])
    offset, mask = offset_mask[:, :18], offset_mask[:, 18:].sigmoid()
    return {
        "offset_conv": offset_mask,
        "same_conv_gn": same(levels[1], offset, mask),
        "down_conv_gn": from_below(levels[0], offset, mask),
        "up_conv_gn_before_resize": from_above(levels[2], offset, mask),
    }


def test_a_single_level_is_mixed_with_itself_alone() -> None:
    module = DyConv(16, groups=4).eval()
    level = torch.randn(1, 16, 5, 7)
    (output,) = module([level])
    offset, mask = module.offset(level).split((18, 9), dim=1)
    same = module.DyConv[1](level, offset, mask.sigmoid())
    torch.testing.assert_close(output, module.relu(same * F.relu6(module.AttnConv(same) + 3) / 6))


def test_every_parameter_and_input_gets_a_gradient() -> None:
    module = DyConv(16, groups=4)
    levels = [torch.randn(2, 16, size, size + 1, requires_grad=True) for size in (8, 4, 2)]
    sum(output.square().sum() for output in module(levels)).backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in [*levels, *module.parameters()])
