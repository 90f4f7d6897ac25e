from __future__ import annotations

import pytest
import torch

from sdpt_ext.models.glip.anchors import level_anchors

from ...golden import cases
from . import detection_cases


@pytest.mark.parametrize("name", ["f_atss_f1", "f_atss_f2"])
def test_golden(name: str) -> None:
    meta, arrays = cases.load(name)
    assert torch.equal(torch.cat(detection_cases.anchors(meta)), torch.from_numpy(arrays["anchors"]))


def test_row_major_from_the_cell_anchor() -> None:
    (anchors,) = level_anchors([(2, 3)], [16], [128], dtype=torch.float64)
    assert anchors.dtype == torch.float64
    assert anchors[0].tolist() == [-56, -56, 71, 71]
    assert (anchors[1] - anchors[0]).tolist() == [16, 0, 16, 0]
    assert (anchors[3] - anchors[0]).tolist() == [0, 16, 0, 16]


def test_one_stride_and_size_per_level() -> None:
    with pytest.raises(ValueError, match="2 levels, 1 strides and 2 sizes"):
        level_anchors([(2, 3), (1, 2)], [8], [64, 128])
