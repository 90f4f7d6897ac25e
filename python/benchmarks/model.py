"""Where the time of GLIP-T goes at 800x1333: one image forward with post-processing, and one SDPT training step.

Weights are random. Per part: seconds, operations of its matrix products and convolutions, and their share of the
machine's measured matmul peak. Every row counts the operations of the compiled backend, whatever a backend computes:
that is what the part needs. "eager" is the same model with textbook fusion, plain PyTorch operators and captions padded
to 256 tokens. The model has seen the caption before, and remembers its text features where it can.

    python python/benchmarks/model.py --json model.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from arguments import benchmark_parser
from machine import hardware, matmul_peak
from parts import PartMeter
from report import Column, print_header, print_row, write_json
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.bert.modeling_bert import BertLayer

from sdpt_ext import SDPTConfig, _host, tune
from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.models.glip.post_processing import post_process_detections
from sdpt_ext.nn import BiAttentionBlock, DyConv

PADDED_TOKENS = 256
PROMPTS = 10
SIZE_DIVISOR = 32
COLUMNS = (
    Column("part", 15),
    Column("forward_ms", 10, ".0f"),
    Column("backward_ms", 11, ".0f"),
    Column("of_time", 7, ".0%"),
    Column("gflop", 8, ".1f"),
    Column("gflops", 7, ".0f"),
    Column("of_peak", 7, ".0%"),
)
Totals = dict[tuple[str, str], float]


class Backend(NamedTuple):
    """What runs the fusion blocks and the other operators, and whether padded text is computed."""

    fusion: str
    operators: str
    padding: bool


class Variant(NamedTuple):
    """What runs the model, and how many prompts each fusion layer has."""

    backend: str
    prompts: int


Run = Callable[[PartMeter, Backend], None]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    machine, peak = hardware(arguments.threads), matmul_peak()
    print(f"{machine}\nmatrix product: {peak / 1e9:.0f} GFLOP/s")
    model = GlipForObjectDetection(GlipConfig.tiny())
    tune(model, SDPTConfig(num_tokens=PROMPTS))
    results = []
    for step in arguments.steps:
        for tokens in arguments.tokens:
            run = STEPS[step](model, image_of(arguments.size), *caption_of(tokens))
            for variant, seconds, flops in measure(model, run, variants(step, arguments), arguments.repeats):
                title = {"step": step, "tokens": tokens, **variant._asdict()}
                print("\n" + ", ".join(f"{key} {value}" for key, value in title.items()))
                print_header(COLUMNS)
                for row in rows(seconds, flops, peak):
                    print_row(COLUMNS, row)
                    results.append(title | row)
    write_json(arguments.json, hardware=machine, matmul_gflops=peak / 1e9, results=results)


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=3)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="default: both")
    parser.add_argument("--tokens", type=int, nargs="+", default=[20, 195], help="real tokens (default: %(default)s)")
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), help="default: all")
    parser.add_argument(
        "--prompts",
        type=int,
        nargs="+",
        choices=(0, PROMPTS),
        default=[0],
        help=f"per fusion layer in the forward pass (default: 0); training always has {PROMPTS}",
    )
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1333], metavar=("HEIGHT", "WIDTH"))
    return parser.parse_args()


def variants(step: str, arguments: argparse.Namespace) -> list[Variant]:
    prompts = arguments.prompts if step == "forward" else [PROMPTS]
    return [Variant(backend, count) for backend in arguments.backends for count in prompts]


def image_of(size: list[int]) -> Tensor:
    """A random image, padded as the processor pads a batch."""
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size)
    image = torch.zeros(1, 3, height, width)
    image[:, :, : size[0], : size[1]] = torch.randn(1, 3, *size)
    return image


def caption_of(tokens: int) -> tuple[Tensor, Tensor]:
    """Random ids and the mask of the real ones, padded to 256 as GLIP pads."""
    mask = (torch.arange(PADDED_TOKENS) < tokens)[None].long()
    return torch.randint(1000, 20000, (1, PADDED_TOKENS)) * mask, mask


def forward_step(model: GlipForObjectDetection, image: Tensor, ids: Tensor, mask: Tensor) -> Run:
    model.eval()
    classes = {label: [2 * label - 1, 2 * label] for label in range(1, int(mask.sum()) // 2)}

    @torch.no_grad()
    def run(meter: PartMeter, backend: Backend) -> None:
        with meter.counting("forward"):
            output = model(image, ids, mask, padding_logits=backend.padding)
        assert output.logits is not None
        logits = make_plausible(output.logits)
        before = meter.read()
        post_process_detections(
            logits,
            output.box_deltas,
            output.centerness,
            model.anchors(output.level_sizes),
            [classes],
            [(800, 1333)],
        )
        meter.totals["forward", "post-processing"] += meter.read() - before

    return run


def make_plausible(logits: Tensor) -> Tensor:
    """Shift random logits so that one token in 50 at a position passes the score threshold, as on a crowded image."""
    threshold = torch.tensor(0.05).logit()
    return logits + threshold - logits.flatten().kthvalue(int(0.98 * logits.numel())).values


def training_step(model: GlipForObjectDetection, image: Tensor, ids: Tensor, mask: Tensor) -> Run:
    model.train()
    prompts = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(prompts, lr=1e-3)
    corner = torch.rand(10, 2) * 500
    boxes = torch.cat((corner, corner + 30 + 200 * torch.rand(10, 2)), dim=1)
    positive_map = torch.zeros(10, PADDED_TOKENS)
    positive_map[:, 1:3] = 1
    labels = [{"boxes": boxes, "class_labels": torch.ones(10, dtype=torch.long), "positive_map": positive_map}]

    def run(meter: PartMeter, backend: Backend) -> None:
        with meter.counting("forward"):
            loss = model(image, ids, mask, labels=labels, padding_logits=backend.padding).loss
        with meter.counting("backward"):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


STEPS = {"forward": forward_step, "training": training_step}
BACKENDS = {"auto": Backend("auto", "auto", padding=False), "eager": Backend("eager", "torch", padding=True)}


def parts_of(model: GlipForObjectDetection) -> dict[str, list[nn.Module]]:
    def all_of(kind: type[nn.Module]) -> list[nn.Module]:
        return [module for module in model.head.dyhead_tower.modules() if isinstance(module, kind)]

    return {
        "Swin": [model.backbone.body],
        "FPN": [model.backbone.fpn],
        "text": [model.text_encoder],
        "fusion": list(all_of(BiAttentionBlock)),
        "BERT layers": all_of(BertLayer),
        "DyConv": all_of(DyConv),
        "predictors": [model.head],
    }


def measure(
    model: GlipForObjectDetection, run: Run, variants: list[Variant], repeats: int
) -> list[tuple[Variant, Totals, Totals]]:
    """Median seconds and needed operations by phase and part, for every variant; they take turns."""
    flops = {count: count_flops(model, run, Variant("auto", count)) for count in {v.prompts for v in variants}}
    samples: dict[Variant, list[Totals]] = {variant: [] for variant in variants}
    for repeat in range(repeats + 1):
        for variant, measured in samples.items():
            with prepared(model, variant), PartMeter(parts_of(model), time.perf_counter).attached() as meter:
                run(meter, BACKENDS[variant.backend])
            if repeat > 0:  # the first run warms caches and allocators
                measured.append(meter.totals)
    return [(variant, median_of(measured), flops[variant.prompts]) for variant, measured in samples.items()]


@contextmanager
def prepared(model: GlipForObjectDetection, variant: Variant) -> Iterator[None]:
    """Prompts are set aside, weights stay frozen: the model remembers its captions for every variant."""
    use_backend(model, variant.backend)
    blocks = model.head.fusion_blocks
    prompts = [block.prompt for block in blocks]
    for block in blocks:
        block.prompt = block.prompt if variant.prompts else None
    yield
    for block, prompt in zip(blocks, prompts):
        block.prompt = prompt


def use_backend(model: GlipForObjectDetection, name: str) -> None:
    backend = BACKENDS[name]
    model.set_fusion_backend(backend.fusion)
    os.environ["SDPT_EXT_BACKEND"] = backend.operators


def median_of(samples: list[Totals]) -> Totals:
    return {key: statistics.median(sample.get(key, 0.0) for sample in samples) for key in samples[0]}


def count_flops(model: GlipForObjectDetection, run: Run, variant: Variant) -> Totals:
    with prepared(model, variant):
        run(PartMeter({}, time.perf_counter), BACKENDS["auto"])  # text that is remembered from here on needs nothing
        counter = FlopCounterMode(display=False, custom_mapping=operator_flops())
        with counter, PartMeter(parts_of(model), counter.get_total_flops).attached() as meter:
            run(meter, BACKENDS["auto"])
    return meter.totals


def operator_flops() -> dict[Any, Callable[..., int]]:
    """Operations of the compiled operators, from the shapes of their arguments."""
    ops = torch.ops.sdpt_ext

    def deform_products(image: Any, weight: Any, stride: Any, padding: Any) -> int:
        batch, channels, *size = image
        plan = _host.deform_conv2d_plan(
            batch, channels, tuple(size), weight[0], tuple(weight[2:]), tuple(stride), tuple(padding)
        )
        return plan["forward"]["flops"]

    def deform_forward(
        image: Any, offset: Any, mask: Any, weight: Any, bias: Any, stride: Any, padding: Any, **_: Any
    ) -> int:
        return deform_products(image, weight, stride, padding)

    def deform_backward(
        grad: Any, image: Any, offset: Any, mask: Any, weight: Any, stride: Any, padding: Any, *_: Any, **__: Any
    ) -> int:
        return deform_products(image, weight, stride, padding)

    def attention_forward(
        x: Any, keys: Any, key_bias: Any, values: Any, prompts: Any, image_mask: Any, num_text: int, *_: Any, **__: Any
    ) -> int:
        batch, positions, width = x
        return 2 * batch * positions * width * keys[1] * (2 * keys[2] + num_text)

    def attention_backward(grad_y: Any, grad_u: Any, grad_mass: Any, x: Any, keys: Any, *_: Any, **__: Any) -> int:
        batch, positions, width = x
        return 2 * batch * positions * width * keys[1] * (5 * keys[2] + 2 * grad_u[2])

    def attention_residual(
        v: Any, norm_weight: Any, norm_bias: Any, norm_epsilon: float, *others: Any, **_: Any
    ) -> int:
        keys, key_bias, values, _offset, *rest = others
        return attention_forward(v, keys, key_bias, values, *rest)

    return {
        ops.deform_conv2d: deform_forward,
        ops.deform_conv2d_backward_data: deform_backward,
        ops.deform_conv2d_backward_weight: deform_backward,
        ops.bi_attention: attention_forward,
        ops.bi_attention_residual: attention_residual,
        ops.bi_attention_backward: attention_backward,
    }


def rows(seconds: Totals, flops: Totals, peak: float) -> list[dict[str, Any]]:
    """One row per part and one for the whole step."""
    parts = list(dict.fromkeys(part for _, part in seconds))
    everything = sum(seconds.values())
    table = [row_of(part, seconds, flops, everything, peak) for part in parts]
    total: Totals = {("forward", "whole"): 0.0, ("backward", "whole"): 0.0}
    work: Totals = dict(total)
    for (phase, _), value in seconds.items():
        total[phase, "whole"] += value
    for (phase, _), value in flops.items():
        work[phase, "whole"] += value
    return [*table, row_of("whole", total, work, everything, peak)]


def row_of(part: str, seconds: Totals, flops: Totals, everything: float, peak: float) -> dict[str, Any]:
    forward, backward = (seconds.get((phase, part), 0.0) for phase in ("forward", "backward"))
    work = sum(flops.get((phase, part), 0.0) for phase in ("forward", "backward"))
    speed = work / (forward + backward) if forward + backward else 0.0
    return {
        "part": part,
        "forward_ms": 1e3 * forward,
        "backward_ms": 1e3 * backward or None,
        "of_time": (forward + backward) / everything,
        "gflop": work / 1e9,
        "gflops": speed / 1e9,
        "of_peak": speed / peak,
    }


if __name__ == "__main__":
    main()
