"""The host module: what was built, and the costs that benchmarks divide by."""

from __future__ import annotations

import pytest

_host = pytest.importorskip("sdpt_ext._host", reason="the host module is not compiled here")


def test_build_info_names_the_instruction_set_that_runs() -> None:
    info = _host.build_info()
    assert info["cpu_instruction_set"] in info["cpu_instruction_sets"].split()
    assert info["torch_target"] == "2.10"


def test_deform_conv2d_plan_counts_what_the_definition_needs() -> None:
    plan = _host.deform_conv2d_plan(2, 8, (5, 6), 4, stride=(2, 2), element_size=8, threads=2)
    columns = 2 * (3 * 3) * 9 * 8
    assert plan["forward"]["flops"] == columns * (2 * 4 + 7)
    image, fields, filters, output = 2 * 8 * 5 * 6, 2 * 27 * 9, 4 * (9 * 8 + 1), 2 * 4 * 9
    assert plan["forward"]["bytes"] == 8 * (image + fields + filters + output)
    assert plan["backward"]["flops"] == columns * (2 * 2 * 4 + 3 * 7)
    assert plan["backward"]["tasks"] == 2


def test_a_plan_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        _host.deform_conv2d_plan(0, 8, (5, 6), 4)
