from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from sdpt_ext.models.glip.anchors import level_anchors
from sdpt_ext.models.glip.losses import detection_loss, giou_loss, token_focal_loss

from ...golden import cases
from . import detection_cases

LEVELS = [(6, 8), (3, 4), (2, 2)]
NUM_ANCHORS = sum(h * w for h, w in LEVELS)


def small_anchors() -> list[Tensor]:
    return level_anchors(LEVELS, (8, 16, 32), (16, 32, 64))


def small_outputs(batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (tokens, 4, 1)
    logits, deltas, centerness = (
        torch.randn(batch, NUM_ANCHORS, size, generator=generator).to(dtype).requires_grad_() for size in sizes
    )
    return logits, deltas, centerness


def label(boxes: list[list[float]], tokens: int) -> dict[str, Tensor]:
    positive_map = torch.zeros(len(boxes), tokens)
    positive_map[:, 1] = 1
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "positive_map": positive_map}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["f1", "f2"])
def test_golden(name: str, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6
    meta, arrays = cases.load(f"f_atss_{name}")
    levels = detection_cases.head_levels(meta, dtype, 2.0, -3.0)
    for maps in levels.values():
        for x in maps:
            x.requires_grad_()
    rows = torch.from_numpy(arrays["positive_map_batch"]).split([len(boxes) for boxes in meta["boxes_xyxy"]])
    labels: list[dict[str, Any]] = [
        {"boxes": torch.tensor(boxes, dtype=dtype), "positive_map": positive_map}
        for boxes, positive_map in zip(meta["boxes_xyxy"], rows, strict=True)
    ]
    mask = torch.from_numpy(arrays["text_masks"])
    losses = detection_loss(*detection_cases.concatenated(levels), detection_cases.anchors(meta), mask, labels)
    sum(losses.values()).backward()
    for key, loss in losses.items():
        cases.assert_close(loss[None], arrays, f"loss.{key}", tolerance)
    for kind, maps in levels.items():
        for i, x in enumerate(maps):
            got, expected = cases.sampled(x.grad, arrays, f"grad_{kind}{i}")
            assert abs(got - expected).max() <= tolerance * arrays[f"grad_{kind}{i}__stat"][2]


def test_focal_loss_is_its_textbook_form() -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.float64) * 5
    targets = torch.rand(2, 5, 7) < 0.3
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    t, p = targets.double(), logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    weight = (0.25 * t + 0.75 * (1 - t)) * (1 - (p * t + (1 - p) * (1 - t))) ** 2
    torch.testing.assert_close(token_focal_loss(logits, targets, mask), (weight * entropy * mask[:, None]).sum())


def test_giou_of_known_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 10], [5, 5, 3, 9]], dtype=torch.float64)
    targets = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 10, 10], [0, 0, 10, 10]], dtype=torch.float64)
    expected = torch.tensor([0.0, 1 - 1 / 3, 1 + 1 / 3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(giou_loss(boxes, targets), expected, atol=1e-8, rtol=0)


def test_image_without_boxes_is_a_pure_negative() -> None:
    outputs = small_outputs(1, 5)
    mask = torch.ones(1, 5)
    losses = detection_loss(*outputs, small_anchors(), mask, [label([], 5)])
    sum(losses.values()).backward()
    assert losses["loss_reg"] == 0 and losses["loss_centerness"] == 0
    background = torch.zeros(1, NUM_ANCHORS, 5, dtype=torch.bool)
    torch.testing.assert_close(losses["loss_dot_product_token"], token_focal_loss(outputs[0], background, mask))
    assert outputs[0].grad.abs().min() > 0
    assert not outputs[1].grad.any() and not outputs[2].grad.any()


def test_empty_image_beside_a_full_one() -> None:
    full, empty = label([[4, 4, 30, 28]], 5), label([], 5)
    outputs = small_outputs(2, 5)
    both = detection_loss(*outputs, small_anchors(), torch.ones(2, 5), [full, empty])
    alone = detection_loss(*(x[:1] for x in outputs), small_anchors(), torch.ones(1, 5), [full])
    torch.testing.assert_close(both["loss_reg"], alone["loss_reg"])
    torch.testing.assert_close(both["loss_centerness"], alone["loss_centerness"])
    assert both["loss_dot_product_token"] > alone["loss_dot_product_token"]


@pytest.mark.parametrize(("tokens", "has_slot"), [(256, True), (255, False)])
def test_background_learns_the_last_of_256_tokens(tokens: int, has_slot: bool) -> None:
    logits, deltas, centerness = small_outputs(1, tokens)
    detection_loss(logits, deltas, centerness, small_anchors(), torch.ones(1, tokens), [label([], tokens)])[
        "loss_dot_product_token"
    ].backward()
    rises = logits.grad[0] < 0
    assert bool(rises[:, -1].all()) == has_slot
    assert not rises[:, :-1].any()


def test_float32_under_autocast() -> None:
    outputs = small_outputs(1, 5, torch.bfloat16)
    arguments = (small_anchors(), torch.ones(1, 5), [label([[4, 4, 30, 28]], 5)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detection_loss(*outputs, *arguments)
    expected = detection_loss(*(x.float() for x in outputs), *arguments)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32 and torch.equal(loss, expected[key])


def test_labels_must_fit() -> None:
    outputs = small_outputs(1, 5)
    with pytest.raises(ValueError, match=r"labels of 2 images for a batch of 1"):
        detection_loss(*outputs, small_anchors(), torch.ones(1, 5), [label([], 5)] * 2)
    with pytest.raises(ValueError, match=r"labels\[0\]\['positive_map'\] has shape \(1, 6\), expected \(1, 5\)"):
        detection_loss(*outputs, small_anchors(), torch.ones(1, 5), [label([[4, 4, 30, 28]], 6)])


def _losses_of_one_process(rank: int, port_file: str, queue: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    outputs = small_outputs(1, 5)
    labels = [label([[4, 4, 30, 28]], 5)] if rank == 0 else [label([], 5)]
    losses = detection_loss(*outputs, small_anchors(), torch.ones(1, 5), labels)
    queue.put((rank, {key: value.item() for key, value in losses.items()}))
    dist.destroy_process_group()


def test_normalisers_are_means_over_processes(tmp_path: Any) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(_losses_of_one_process, (str(tmp_path / "store"), queue), nprocs=2)
    results = dict(queue.get() for _ in range(2))
    outputs = small_outputs(1, 5)
    alone = detection_loss(*outputs, small_anchors(), torch.ones(1, 5), [label([[4, 4, 30, 28]], 5)])
    # Half the positives of one process: twice the loss of the process that holds them all.
    for key, value in alone.items():
        assert results[0][key] == pytest.approx(2 * value.item(), rel=1e-5)
    assert results[1]["loss_reg"] == 0 and results[1]["loss_dot_product_token"] > 0
