from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpt_ext.models.glip.box_coder import decode, encode

corner = st.floats(-200, 1000)
side = st.floats(1, 800)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@settings(max_examples=50, deadline=None)
@given(box)
def test_round_trip(target: list[float]) -> None:
    anchor = torch.tensor([[-28.0, -28.0, 35.0, 35.0]], dtype=torch.float64)
    boxes = torch.tensor([target], dtype=torch.float64)
    torch.testing.assert_close(decode(anchor, encode(anchor, boxes)), boxes)


def test_known_values() -> None:
    anchor = torch.tensor([0.0, 0.0, 9.0, 9.0])
    wider = torch.tensor([5.0, 0.0, 24.0, 9.0])
    expected = [10 * 10 / 10, 0.0, 5 * math.log(2), 0.0]
    torch.testing.assert_close(encode(anchor, wider), torch.tensor(expected))


def test_huge_deltas_are_limited() -> None:
    anchor = torch.tensor([0.0, 0.0, 15.0, 15.0])
    x1, _, x2, _ = decode(anchor, torch.tensor([0.0, 0.0, 1e4, 1e4])).tolist()
    assert math.isclose(x2 - x1 + 1, 1000, rel_tol=1e-5)
