"""pytest plugin for a process that runs simulated kernels: every check on, every test clean."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cudasim import simulator

cudasim = simulator.load()


def pytest_configure() -> None:
    cudasim.torch_allocator()
    cudasim.checks(strict=True)


@pytest.fixture(autouse=True)
def violates_no_check() -> Iterator[None]:
    cudasim.reset()
    yield
    cudasim.assert_clean()
