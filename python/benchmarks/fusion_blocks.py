"""What a fusion layer can be made of: our block, its rivals, and one step of each on random tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoBiMultiHeadAttention

from sdpt_ext import SDPTConfig, _library
from sdpt_ext.models.grounding_dino import PromptedGroundingDinoAttention
from sdpt_ext.nn import BiAttentionBlock, FusionAttention, PromptRows
from sdpt_ext.nn.fusion_inputs import FusionInputs
from sdpt_ext.tuners.sdpt import PrototypeTokens

PADDED_TOKENS = 256  # the length that GLIP pads every caption to
_Step = Callable[[], Any]


class Case(NamedTuple):
    """One measurement: N image positions, T real text tokens, K prompts."""

    positions: int
    tokens: int
    prompts: int
    dtype: str
    backward: bool
    device: str
    threads: int


class Unavailable(Exception):
    """A contender cannot run here; the message says why."""


class FixedPrompts(nn.Module):
    """Prompt rows that need no mapping: a rival is spared what SDPT computes once."""

    def __init__(self, count: int, text_width: int) -> None:
        super().__init__()
        self.image, self.text = nn.Parameter(torch.randn(count, 256)), nn.Parameter(torch.randn(count, text_width))

    def forward(self, attention: FusionAttention) -> PromptRows:
        return PromptRows(self.image, self.text)


class PlainBlock(nn.Module):
    """GLIP's fusion block as a textbook would write it, over the weights of a :class:`BiAttentionBlock`.

    With `fused` both directions are calls of ``scaled_dot_product_attention``; without, they share one score matrix.
    """

    def __init__(self, block: BiAttentionBlock, fused: bool) -> None:
        super().__init__()
        self.block, self.fused = block, fused

    def forward(self, v: Tensor, l: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        block, attention = self.block, self.block.attn
        v, l = block.layer_norm_v(v), block.layer_norm_l(l)
        positions, tokens = v.shape[1], l.shape[1]
        rows, words, mask = joined(v, l, mask, None if block.prompt is None else block.prompt(attention))
        query, key = self.heads(attention.v_proj(rows)), self.heads(attention.l_proj(words))
        image_values, text_values = (
            self.heads(attention.values_v_proj(rows)),
            self.heads(attention.values_l_proj(words)),
        )
        visible = (mask != 0)[:, None, None]
        if self.fused:
            to_image = F.scaled_dot_product_attention(query, key, text_values, visible)
            to_text = F.scaled_dot_product_attention(key, query, image_values)
        else:
            scores = query @ key.mT * attention.scale
            to_image = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ text_values
            to_text = scores.mT.softmax(-1) @ image_values
        delta_v = attention.out_v_proj(to_image.transpose(1, 2).flatten(2)[:, :positions])
        delta_l = attention.out_l_proj(to_text.transpose(1, 2).flatten(2)[:, :tokens])
        return v + block.gamma_v * delta_v, l + block.gamma_l * delta_l

    def heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.block.attn.num_heads, -1)).transpose(1, 2)


class GroundingDinoFusion(nn.Module):
    """Grounding DINO's fusion attention at its own widths: 256 and 256 in 1024, with 4 heads.

    `backend` is one of the package's, or None for the code of transformers.
    """

    def __init__(self, prompts: int, backend: str | None) -> None:
        super().__init__()
        attention: Any = GroundingDinoBiMultiHeadAttention(GroundingDinoConfig())
        attention.__class__ = PromptedGroundingDinoAttention
        attention.backend, attention.prompt = backend, None
        self.attention = attention
        self.prompt = prompt_rows(attention, prompts, fixed=backend is None) if prompts else None

    def forward(self, v: Tensor, l: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        attention, positions, tokens = self.attention, v.shape[1], l.shape[1]
        prompts = None if self.prompt is None else self.prompt(attention)
        if attention.backend is not None:
            return attention.attend(v, l, mask, prompts, attention.backend)
        v, l, mask = joined(v, l, mask, prompts)
        (v, _), (l, _) = attention(v, l, None, mask == 0)  # without prompts of its own it runs the host's code
        return v[:, :positions], l[:, :tokens]


def joined(v: Tensor, l: Tensor, mask: Tensor, prompts: PromptRows | None) -> tuple[Tensor, Tensor, Tensor]:
    """Image tokens, text tokens and text mask with the prompts behind the tokens."""
    inputs = FusionInputs(v, l, mask, prompts=prompts).with_prompts_as_tokens()
    assert inputs.text_mask is not None
    return inputs.v, inputs.l, inputs.text_mask


def prompt_rows(attention: FusionAttention, count: int, fixed: bool) -> nn.Module:
    if fixed:
        return FixedPrompts(count, attention.projections.key.in_features)
    return PrototypeTokens(attention, SDPTConfig(num_tokens=count))


def glip_block(case: Case, backend: str) -> BiAttentionBlock:
    torch.manual_seed(0)
    block = BiAttentionBlock(256, 768, 2048, 8)
    if case.prompts:
        block.prompt = prompt_rows(block.attn, case.prompts, fixed=backend == "eager")
    block.backend = backend
    return block


def onnx_step(case: Case) -> _Step:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  the exporter needs it
    except ImportError as error:
        raise Unavailable(f"{error}; pip install onnx onnxruntime onnxscript") from error
    if case.backward or case.dtype != "float32" or case.device != "cpu":
        raise Unavailable("onnxruntime is measured forward, in float32, on the CPU")
    block = glip_block(case, "eager").eval()
    inputs = tokens_of(case, PADDED_TOKENS, text_width=768)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.onnx"
        with torch.no_grad():
            torch.onnx.export(block, inputs, path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        # Its threads would go on spinning for a while and slow down whichever contender comes next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


def tokens_of(case: Case, length: int, text_width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image tokens, `length` text tokens and the mask of those that are real."""
    dtype = getattr(torch, case.dtype)
    v = torch.randn(1, case.positions, 256, device=case.device).to(dtype)
    l = torch.randn(1, length, text_width, device=case.device).to(dtype)
    return v, l, (torch.arange(length, device=case.device) < case.tokens)[None].long()


def torch_step(
    case: Case, module: nn.Module, compiled: bool = False, padded: bool = False, text_width: int = 768
) -> _Step:
    """The module on random tokens, forward or with the gradients of all its inputs and weights."""
    module = module.to(case.device, getattr(torch, case.dtype)).train(case.backward)
    run = torch.compile(module) if compiled else module
    v, l, mask = tokens_of(case, PADDED_TOKENS if padded else case.tokens, text_width)
    if not case.backward:
        return torch.no_grad()(lambda: run(v, l, mask))
    v.requires_grad_(), l.requires_grad_()
    leaves = (v, l, *module.parameters())
    cotangents = (torch.randn_like(v), torch.randn_like(l))
    return lambda: torch.autograd.grad(run(v, l, mask), leaves, cotangents, allow_unused=True)


def compiled_kernel(case: Case) -> str:
    problem = _library.missing_kernel("bi_attention", torch.device(case.device).type)
    if problem is not None:
        raise Unavailable(problem)
    return "ext"


# What is called eager sees captions padded to 256 tokens, as GLIP feeds them; the others see real tokens alone.
CONTENDERS: dict[str, Callable[[Case], _Step]] = {
    "ext": lambda case: torch_step(case, glip_block(case, compiled_kernel(case))),
    "torch": lambda case: torch_step(case, glip_block(case, "torch")),
    "eager": lambda case: torch_step(case, glip_block(case, "eager"), padded=True),
    "textbook": lambda case: torch_step(case, PlainBlock(glip_block(case, "eager"), fused=False)),
    "sdpa": lambda case: torch_step(case, PlainBlock(glip_block(case, "eager"), fused=True)),
    "compiled-eager": lambda case: torch_step(case, glip_block(case, "eager"), compiled=True, padded=True),
    "compiled-torch": lambda case: torch_step(case, glip_block(case, "torch"), compiled=True),
    "onnxruntime-eager": onnx_step,
    "gdino-ext": lambda case: torch_step(
        case, GroundingDinoFusion(case.prompts, compiled_kernel(case)), text_width=256
    ),
    "gdino-torch": lambda case: torch_step(case, GroundingDinoFusion(case.prompts, "torch"), text_width=256),
    "gdino-hf": lambda case: torch_step(case, GroundingDinoFusion(case.prompts, None), text_width=256),
}


def build(contender: str, case: Case) -> _Step:
    """One step of a contender, ready to be called.

    Raises:
        Unavailable: it cannot run here.
    """
    torch.set_num_threads(case.threads)
    return CONTENDERS[contender](case)


def needed_flops(contender: str, case: Case) -> int:
    """Floating point operations of the products that the folded algebra needs, scores shared by both directions.

    Forward: scores, image output and text output over the image; the text's own projections. Backward: scores again,
    two products of weights and of values each, and the two gradients of the scores' factors.
    """
    heads, text_width, dim = (4, 256, 1024) if contender.startswith("gdino") else (8, 768, 2048)
    width = 256
    over_image = 2 * case.positions * width * heads
    columns = case.tokens + case.prompts
    text = 2 * case.tokens * dim * (3 * text_width + 3 * width)
    forward = over_image * (2 * columns + case.tokens) + text
    backward = over_image * (5 * columns + 2 * case.tokens) + 2 * text
    return forward + backward if case.backward else forward
