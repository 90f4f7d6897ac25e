"""Reading of GLIP checkpoints in their official layout and strict conversion to our parameter names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import SwinConfig

from .anchors import level_anchors
from .backbone import GlipBackbone
from .configuration import GlipConfig
from .head import VLDyHead
from .text import GlipTextEncoder

# Ours -> official, applied in order to every key.
_RENAMES = (
    (r"^head\.", "rpn.head."),
    (r"^text_encoder\.", "language_backbone.body."),
    (r"^backbone\.body\.swin\.encoder\.", "backbone.body."),
    (r"^backbone\.body\.swin\.embeddings\.patch_embeddings\.projection\.", "backbone.body.patch_embed.proj."),
    (r"^backbone\.body\.swin\.embeddings\.norm\.", "backbone.body.patch_embed.norm."),
    (r"(\.blocks\.\d+)\.attention\.relative_position_bias\.", r"\1.attn."),
    (r"(\.blocks\.\d+)\.attention\.[qkv]_proj\.", r"\1.attn.qkv."),
    (r"(\.blocks\.\d+)\.attention\.o_proj\.", r"\1.attn.proj."),
    (r"(\.blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"(\.blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
)
_STAGE_NORM = re.compile(r"^backbone\.body\.hidden_states_norms\.stage(\d+)\.")
_QKV_PART = re.compile(r"^backbone\.body\..*\.attention\.([qkv])_proj\.")
_CONSTANT = re.compile(r"\.relative_position_index$|^rpn\.anchor_generator\.cell_anchors\.\d+$")
_IGNORED = re.compile(r"\.embeddings\.position_ids$")
_MAGICS = (b"PK\x03\x04", b"\x80\x02")


class _Source(NamedTuple):
    """Where one of our tensors comes from: an official key and, for q, k and v, which third of its rows."""

    key: str
    third: int | None


def read_official_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a `.pth` file without running any code that it may hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut short, no PyTorch checkpoint, or holds more than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a GLIP .pth file")
    with path.open("rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make torch raise almost any type
            raise ValueError(_unreadable(path, error)) from error
    if isinstance(checkpoint, dict):
        return checkpoint
    raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a dictionary of tensors as GLIP saves")


def _unreadable(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
    if size == 0:
        return f"{path} is empty: download it again"
    if not start.startswith(_MAGICS):
        return f"{path} is not a PyTorch checkpoint (it starts with {start!r}): give the path of a GLIP .pth file"
    if "Unsupported" in str(error):
        return (
            f"{path} holds objects other than tensors, which are not loaded because they could run code. "
            "If you trust the file, save its 'model' entry alone with torch.save and load that"
        )
    return f"{path} is damaged or incomplete ({size} bytes): download it again"


def official_config(state_dict: Mapping[str, Any]) -> GlipConfig:
    """The released configuration, GLIP-T or GLIP-L, that an official checkpoint belongs to.

    Raises:
        ValueError: the width of the patch embedding is that of neither.
    """
    key = "backbone.body.patch_embed.proj.weight"
    weights = unwrap(state_dict)
    if key not in weights:
        raise ValueError(f"no GLIP checkpoint: it has no '{key}'")
    known = {96: GlipConfig.tiny, 192: GlipConfig.large}
    width = weights[key].shape[0]
    if width not in known:
        raise ValueError(f"Swin of width {width} is neither GLIP-T (96) nor GLIP-L (192): pass its GlipConfig")
    return known[width]()


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Take the weights out of a checkpoint: its `model` entry, without a leading `module.` on every key."""
    inner = state_dict.get("model")
    weights = inner if isinstance(inner, Mapping) else state_dict
    shared = all(key.startswith("module.") for key in weights)
    return {key.removeprefix("module.") if shared else key: value for key, value in weights.items()}


def official_shapes(config: GlipConfig) -> dict[str, tuple[int, ...]]:
    """Every key and shape of the official state dict of this configuration, constant buffers included."""
    shapes = {}
    for key, shape in _own_shapes(config).items():
        source = _source(key)
        shapes[source.key] = shape if source.third is None else (3 * shape[0], *shape[1:])
    shapes.update({key: tuple(value.shape) for key, value in _constants(config).items()})
    return shapes


def convert_official_state_dict(state_dict: Mapping[str, Any], config: GlipConfig) -> dict[str, Tensor]:
    """Rename official GLIP weights to those of `GlipForObjectDetection`, strictly.

    The wrapper `model`, the prefix `module.` and old `position_ids` buffers are dealt with. Buffers that follow from
    the configuration (anchors, relative-position indices) may be absent; where present they must agree with it.

    Args:
        state_dict: official checkpoint or its weights.
        config: configuration that the weights must fit.

    Raises:
        ValueError: keys are missing, unexpected or of another shape (all are listed), a constant buffer disagrees
            with the configuration, or the checkpoint has no fusion layers.
    """
    weights = {key: value for key, value in unwrap(state_dict).items() if not _IGNORED.search(key)}
    _refuse_without_fusion(weights)
    _check_keys(weights, official_shapes(config))
    _check_constants(weights, _constants(config))
    return {key: _take(weights, _source(key)) for key in _own_shapes(config)}


def _own_shapes(config: GlipConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "backbone": GlipBackbone(config),
            "text_encoder": GlipTextEncoder(config),
            "head": VLDyHead(config),
        }
    return {
        f"{part}.{key}": tuple(value.shape)
        for part, module in parts.items()
        for key, value in module.state_dict().items()
    }


def _source(key: str) -> _Source:
    part = _QKV_PART.match(key)
    # The released code counts stages from 0, transformers from 1.
    official = _STAGE_NORM.sub(lambda match: f"backbone.body.norm{int(match[1]) - 1}.", key)
    for pattern, replacement in _RENAMES:
        official = re.sub(pattern, replacement, official)
    return _Source(official, "qkv".index(part[1]) if part else None)


def _take(weights: Mapping[str, Tensor], source: _Source) -> Tensor:
    tensor = weights[source.key]
    return tensor if source.third is None else tensor.chunk(3)[source.third]


def _constants(config: GlipConfig) -> dict[str, Tensor]:
    """Official buffers that follow from the configuration alone."""
    swin = cast(SwinConfig, config.backbone_config)
    index = _relative_position_index(swin.window_size)
    constants = {
        f"backbone.body.layers.{stage}.blocks.{block}.attn.relative_position_index": index
        for stage, depth in enumerate(swin.depths)
        for block in range(depth)
    }
    sizes = [(1, 1)] * len(config.anchor_sizes)
    cells = level_anchors(sizes, config.anchor_strides, config.anchor_sizes, torch.device("cpu"), torch.float32)
    constants.update({f"rpn.anchor_generator.cell_anchors.{level}": cell for level, cell in enumerate(cells)})
    return constants


def _relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every (query, key) pair of a window, (window^2, window^2)."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def _refuse_without_fusion(weights: Mapping[str, Any]) -> None:
    head = [key for key in weights if key.startswith("rpn.head.dyhead_tower.")]
    if head and not any(".b_attn." in key for key in head):
        raise ValueError(
            "this checkpoint has no fusion layers (it looks like GLIP-T (A)): image and text never meet before its "
            "last layer, so the fused model and its prompts have nothing to load. Use GLIP-T (B), GLIP-T (C), GLIP-T "
            "or GLIP-L"
        )


def _check_keys(weights: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [key for key in expected if key not in weights and not _CONSTANT.search(key)]
    unexpected = [key for key in weights if key not in expected]
    shared = [key for key in expected if key in weights]
    misshaped = [
        f"{key}: checkpoint {_shape(weights[key])}, model {expected[key]}"
        for key in shared
        if _shape(weights[key]) != expected[key]
    ]
    if missing or unexpected or misshaped:
        lines = ["the checkpoint does not fit the configuration", *_hints(unexpected, len(shared))]
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped)):
            lines.extend(_listing(title, keys))
        raise ValueError("\n".join(lines))


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _listing(title: str, keys: Sequence[str]) -> Iterator[str]:
    if keys:
        yield f"{len(keys)} {title} {'key' if len(keys) == 1 else 'keys'}:"
        yield from (f"  {key}" for key in keys)


def _hints(unexpected: Sequence[str], shared: int) -> Iterator[str]:
    if not shared:
        yield "no key is one of GLIP's: is this a checkpoint of another architecture?"
    if any(key.endswith(("cpt_input", "cpt_maskpad")) for key in unexpected):
        yield "it holds prompts of the released SDPT code (cpt_input, cpt_maskpad): remove them to load the detector"


def _check_constants(weights: Mapping[str, Any], constants: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{key}: checkpoint {weights[key].tolist()}, configuration {value.tolist()}"
        if value.numel() <= 4
        else f"{key}: not the index of this window size"
        for key, value in constants.items()
        if key in weights and not torch.equal(weights[key].to(value.dtype), value)
    ]
    if wrong:
        raise ValueError("\n".join(["the checkpoint's anchors or windows are not the configuration's", *wrong]))


__all__ = [
    "convert_official_state_dict",
    "official_config",
    "official_shapes",
    "read_official_checkpoint",
    "unwrap",
]
