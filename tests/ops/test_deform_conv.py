"""The deformable convolution against the official numbers, against loops, and in its corner cases."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpt_ext.ops import deform_conv2d
from tests.golden import cases

from .backends import BACKENDS, DEVICE, SIMULATED, needs_library

GOLDEN = ["dcn_same", "dcn_down", "dcn_up_quirk", "dcn_up_quirk2"]


def example(
    batch: int = 2,
    channels: int = 5,
    size: tuple[int, int] = (6, 7),
    out_channels: int = 4,
    kernel: tuple[int, int] = (3, 3),
    field: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """input, offset, mask, weight and bias; `field` is the spatial size of offset and mask, by default the input's."""
    generator = torch.Generator().manual_seed(0)
    taps = kernel[0] * kernel[1]
    shapes = [
        (batch, channels, *size),
        (batch, 2 * taps, *(field or size)),
        (batch, taps, *(field or size)),
        (out_channels, channels, *kernel),
        (out_channels,),
    ]
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") for shape in shapes]
    tensors = [draw.to(DEVICE, dtype) for draw in draws]
    tensors[1] *= 1.5
    return tensors


def by_loops(
    image: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """The definition, number by number, for one sample of the batch after another."""
    kernel_h, kernel_w = weight.shape[2:]
    out_h = (image.shape[2] + 2 * padding - kernel_h) // stride + 1
    out_w = (image.shape[3] + 2 * padding - kernel_w) // stride + 1
    output = bias[None, :, None, None].repeat(image.shape[0], 1, out_h, out_w)
    for sample, row, column in itertools.product(range(image.shape[0]), range(out_h), range(out_w)):
        for tap in range(kernel_h * kernel_w):

            def flat(field: Tensor, channel: int) -> float:
                index = (channel * out_h + row) * out_w + column  # noqa: B023 - called at once
                return float(field[sample].reshape(-1)[index])  # noqa: B023

            y = row * stride - padding + tap // kernel_w + flat(offset, 2 * tap)
            x = column * stride - padding + tap % kernel_w + flat(offset, 2 * tap + 1)
            value = sample_bilinear(image[sample], y, x) * flat(mask, tap)
            output[sample, :, row, column] += weight[:, :, tap // kernel_w, tap % kernel_w] @ value
    return output


def sample_bilinear(image: Tensor, y: float, x: float) -> Tensor:
    value = torch.zeros_like(image[:, 0, 0])
    top, left = math.floor(y), math.floor(x)
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return value


def with_gradients(tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """The output and the gradients of all five tensors under a fixed cotangent."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = deform_conv2d(*leaves, **options)
    # Eighths, which every dtype holds exactly.
    cotangent = torch.linspace(-8, 8, output.numel()).round().div(8).to(output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", GOLDEN)
def test_equals_official_numbers(name: str, dtype: torch.dtype, tolerance: float, backend: str) -> None:
    meta, arrays = cases.load("c_mdcn_op")
    case = meta["cases"][name]
    image = cases.inputs(f"{name}.x", case["x"], dtype).to(DEVICE).requires_grad_()
    field = cases.inputs(f"{name}.offset_mask", case["offset_mask"], dtype, case["offset_mask_scale"])
    field = field.to(DEVICE).requires_grad_()
    weight = cases.tensor(cases.fill.fill(f"{name}.weight", case["weight"]), dtype).to(DEVICE)
    bias = cases.tensor(cases.fill.fill(f"{name}.bias", case["bias"]), dtype).to(DEVICE)
    output = deform_conv2d(
        image, field[:, :18], field[:, 18:].sigmoid(), weight, bias, stride=case["stride"], backend=backend
    )
    output.backward(cases.cotangent(name, output).to(DEVICE))
    assert image.grad is not None
    assert field.grad is not None
    cases.assert_close(output.cpu(), arrays, f"{name}.out", tolerance)
    cases.assert_close(image.grad.cpu(), arrays, f"{name}.grad_x", tolerance)
    cases.assert_close(field.grad.cpu(), arrays, f"{name}.grad_offset_mask", tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("stride", "padding", "kernel", "size"),
    [
        (1, 1, (3, 3), (6, 7)),
        (2, 1, (3, 3), (7, 6)),
        (1, 0, (1, 1), (4, 3)),
        (2, 2, (2, 3), (5, 5)),
        (1, 1, (3, 3), (1, 1)),
    ],
)
def test_equals_the_definition(
    stride: int, padding: int, kernel: tuple[int, int], size: tuple[int, int], backend: str
) -> None:
    tensors = example(size=size, kernel=kernel, field=(9, 9))
    expected = by_loops(*tensors, stride, padding)
    actual = deform_conv2d(*tensors, stride=stride, padding=padding, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_offset_is_an_ordinary_convolution(backend: str) -> None:
    image, offset, _, weight, bias = example()
    actual = deform_conv2d(image, torch.zeros_like(offset), None, weight, bias, backend=backend)
    torch.testing.assert_close(actual, torch.nn.functional.conv2d(image, weight, bias, padding=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_stride_and_padding_differ_per_axis(backend: str) -> None:
    image, offset, _, weight, bias = example()
    actual = deform_conv2d(image, torch.zeros_like(offset), None, weight, bias, (2, 1), (0, 1), backend=backend)
    torch.testing.assert_close(actual, torch.nn.functional.conv2d(image, weight, bias, (2, 1), (0, 1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    sizes: dict[str, Any] = {"size": (4, 3), "field": (4, 4)}
    if SIMULATED:
        sizes = {"size": (2, 2), "field": (3, 3), "kernel": (2, 2)}
    tensors = [tensor.requires_grad_() for tensor in example(1, 2, out_channels=3, **sizes)]
    assert torch.autograd.gradcheck(lambda *t: deform_conv2d(*t, backend=backend), tensors)
    without_mask = [tensors[0], tensors[1], tensors[3]]
    assert torch.autograd.gradcheck(
        lambda image, offset, weight: deform_conv2d(image, offset, None, weight, stride=2, backend=backend),
        without_mask,
    )


@needs_library
@pytest.mark.parametrize("use_mask", [True, False])
def test_opcheck(use_mask: bool) -> None:
    image, offset, mask, weight, bias = (t.requires_grad_() for t in example(1, 3, (4, 5), 2))
    arguments = (image, offset, mask if use_mask else None, weight, bias if use_mask else None, [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.sdpt_ext.deform_conv2d.default, arguments)
    grad = torch.ones(1, 2, 4, 5, dtype=torch.float64)
    fixed = [t if t is None else t.detach() for t in arguments[:4]]
    backward = (grad, *fixed, [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.sdpt_ext.deform_conv2d_backward_data.default, (*backward, True, True))
    torch.library.opcheck(torch.ops.sdpt_ext.deform_conv2d_backward_data.default, (*backward, False, True))
    torch.library.opcheck(torch.ops.sdpt_ext.deform_conv2d_backward_weight.default, backward)


@needs_library
@pytest.mark.parametrize("threads", [1] if SIMULATED else [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("channels", "size"), [(1, (5, 4)), (33, (9, 7)), (130, (7, 10) if SIMULATED else (24, 31))])
def test_backends_agree_on_every_gradient(channels: int, size: tuple[int, int], batch: int, threads: int) -> None:
    tensors = example(batch, channels, size, 7, dtype=torch.float32)
    doubles = [tensor.double() for tensor in tensors]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = with_gradients(tensors, backend="ext")
    finally:
        torch.set_num_threads(before)
    for got, expected in zip(actual, with_gradients(doubles, backend="torch"), strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_library
def test_only_needed_gradients_are_returned() -> None:
    image, offset, mask, weight, bias = example()
    for needed in range(5):
        leaves = [t.clone() for t in (image, offset, mask, weight, bias)]
        leaves[needed].requires_grad_()
        deform_conv2d(*leaves, backend="ext").sum().backward()
        full = with_gradients([image, offset, mask, weight, bias], backend="torch")
        assert [leaf.grad is not None for leaf in leaves] == [index == needed for index in range(5)]
        assert full[1 + needed].shape == leaves[needed].grad.shape  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 0},
        {"out_channels": 0},
        {"channels": 0},
        {"size": (0, 4), "field": (1, 4)},
    ],
)
def test_empty_tensors_give_empty_or_bias_only_results(sizes: dict[str, Any], backend: str) -> None:
    tensors = example(**sizes)
    output, *gradients = with_gradients(tensors, padding=1, backend=backend)
    assert output.shape[:2] == (tensors[0].shape[0], tensors[3].shape[0])
    assert [g.shape for g in gradients] == [t.shape for t in tensors]
    if sizes.get("channels") == 0:
        torch.testing.assert_close(output, tensors[4][None, :, None, None].expand_as(output))


@needs_library
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_has_the_memory_format_of_the_input(memory_format: torch.memory_format) -> None:
    image, *others = example(dtype=torch.float32)
    output = deform_conv2d(image.contiguous(memory_format=memory_format), *others, backend="ext")
    assert output.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_tensors(backend: str) -> None:
    tensors = example(batch=3, channels=4, size=(5, 5))
    strided = [
        tensors[0].to(memory_format=torch.channels_last),
        tensors[1].transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([tensors[2], tensors[2]], -1)[..., 0],
        tensors[3].to(memory_format=torch.channels_last),
        torch.stack([tensors[4], tensors[4]], -1)[:, 0],
    ]
    for got, expected in zip(
        with_gradients(strided, backend=backend), with_gradients(tensors, backend=backend), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_far_outside_read_zero_and_get_no_gradient(backend: str) -> None:
    tensors = example()
    for far in (1e6, -1e6, math.inf, math.nan):
        tensors[1].fill_(far)
        output, grad_input, grad_offset, grad_mask, grad_weight, _ = with_gradients(tensors, backend=backend)
        torch.testing.assert_close(output, tensors[4][None, :, None, None].expand_as(output))
        assert all(not g.any() for g in (grad_input, grad_offset, grad_mask, grad_weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_pixels_do_not_leak_into_other_positions(backend: str) -> None:
    image, offset, mask, weight, bias = example(size=(4, 4))
    image[:, :, 0, 0] = math.inf
    output = deform_conv2d(image, torch.full_like(offset, -0.5), mask, weight, bias, backend=backend)
    assert output[:, :, 3, 3].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_float32_under_autocast(dtype: torch.dtype, backend: str) -> None:
    halves = [tensor.to(dtype) for tensor in example()]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        automatic = deform_conv2d(*halves, backend=backend)
    assert automatic.dtype == torch.float32
    torch.testing.assert_close(automatic, deform_conv2d(*(tensor.float() for tensor in halves), backend=backend))


# Sizes on either side of the tiles of 64 positions, channels and output channels and of the steps of 32 channels, and
# with positions enough for the wide tiles and for the tall ones.
HALF_SIZES: list[dict[str, Any]] = [
    {},
    {"channels": 70, "out_channels": 65, "size": (9, 8)},
    {"channels": 31, "out_channels": 130, "size": (13, 11), "batch": 3},
    {"channels": 8, "out_channels": 80, "size": (68, 63), "batch": 1, "kernel": (1, 1)},
    {"channels": 72, "out_channels": 72, "size": (93, 92), "batch": 1, "kernel": (1, 1)},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", HALF_SIZES, ids=str)
def test_half_precision_errs_at_most_twice_as_much_as_rounding(
    sizes: dict[str, Any], dtype: torch.dtype, backend: str
) -> None:
    halves = [tensor.to(dtype) for tensor in example(**sizes)]
    padding = halves[3].shape[-1] // 2
    exact = with_gradients([tensor.double() for tensor in halves], padding=padding, backend="torch")
    actual = with_gradients(halves, padding=padding, backend=backend)
    for got, expected in zip(actual, exact, strict=True):
        assert got.dtype == dtype
        rounding = (expected.to(dtype) - expected).abs().max()
        assert (got - expected).abs().max() <= 2 * rounding


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_run_gives_the_same_numbers(dtype: torch.dtype) -> None:
    tensors = example(2, 40, (12, 11), 20, dtype=dtype)
    for first, second in zip(with_gradients(tensors, backend="ext"), with_gradients(tensors, backend="ext")):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (2, 5, 6), "must have 4 dimensions"),
        (0, (2, 4, 6, 7), "input has 4 channels, but weight expects 5"),
        (1, (2, 17, 6, 7), r"offset must have shape \(2, 18, h, w\)"),
        (1, (1, 18, 6, 7), r"offset must have shape \(2, 18, h, w\)"),
        (1, (2, 18, 5, 7), "offset of 5x7 is smaller than the output 6x7"),
        (2, (2, 9, 6, 6), "mask of 6x6 is smaller"),
        (3, (4, 5, 3), "must have 4 dimensions"),
        (4, (3,), r"bias must have shape \(4,\)"),
    ],
)
def test_bad_shapes_raise(position: int, shape: tuple[int, ...], message: str) -> None:
    tensors = example()
    tensors[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        deform_conv2d(*tensors)


@pytest.mark.parametrize("options", [{"stride": 0}, {"padding": -1}, {"stride": (1, 2, 3)}])
def test_bad_options_raise(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        deform_conv2d(*example(), **options)


@needs_library
def test_the_operator_itself_checks_its_arguments() -> None:
    image, offset, mask, weight, bias = example()
    for arguments in (
        (image, offset[:, :17], mask, weight, bias, [1, 1], [1, 1]),
        (image, offset[..., :-1], mask, weight, bias, [1, 1], [1, 1]),
        (image, offset, mask, weight.float(), bias, [1, 1], [1, 1]),
        (image, offset, mask, weight, bias[:1], [1, 1], [1, 1]),
        (image, offset, mask, weight, bias, [0, 1], [1, 1]),
        (image, offset, mask, weight, bias, [1], [1, 1]),
    ):
        with pytest.raises(RuntimeError, match="deform_conv2d"):
            torch.ops.sdpt_ext.deform_conv2d(*arguments)
    with pytest.raises(RuntimeError, match="float32 or float64"):
        integers = [t.int() for t in (image, offset, mask, weight, bias)]
        torch.ops.sdpt_ext.deform_conv2d(*integers, [1, 1], [1, 1])
