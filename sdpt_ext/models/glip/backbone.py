"""Image side of GLIP: a Swin transformer followed by a feature pyramid with two extra coarse levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SwinBackbone, SwinConfig
from transformers.models.swin.modeling_swin import SwinAttention, SwinLayer, SwinMLP

from .configuration import GlipConfig


class DropBlock(nn.Module):
    """DropBlock of Ghiasi et al. (2018) with one mask for all channels; the identity outside training.

    Args:
        probability: expected share of dropped positions, in [0, 1).
        block_size: side of a dropped square, odd.
    """

    def __init__(self, probability: float, block_size: int = 3) -> None:
        super().__init__()
        self.probability = probability
        self.block_size = block_size

    def forward(self, features: Tensor) -> Tensor:
        """Zero random squares of `features` (B, C, H, W) and rescale the rest to keep the mean."""
        if not self.training or self.probability == 0:
            return features
        batch, _, height, width = features.shape
        seeds = torch.rand(batch, 1, height, width, device=features.device) < self.probability / self.block_size**2
        dropped = functional.max_pool2d(seeds.float(), self.block_size, stride=1, padding=self.block_size // 2)
        kept = 1 - dropped
        return features * (kept * kept.numel() / kept.sum().clamp(min=1)).to(features.dtype)


class FeaturePyramid(nn.Module):
    """Feature pyramid with P6 and P7; child modules carry GLIP's names.

    Args:
        in_channels: channels of the backbone stages, fine to coarse.
        first_stage: number of the finest stage, which names the children (`fpn_inner2`, `fpn_layer2`, ...).
        out_channels: channels of every pyramid level.
        drop_block: DropBlock probability on the top-down sums (training only).
    """

    def __init__(self, in_channels: Sequence[int], first_stage: int, out_channels: int, drop_block: float) -> None:
        super().__init__()
        self.stages = range(first_stage, first_stage + len(in_channels))
        for stage, channels in zip(self.stages, in_channels):
            self.add_module(f"fpn_inner{stage}", nn.Conv2d(channels, out_channels, 1))
            self.add_module(f"fpn_layer{stage}", nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.top_blocks = nn.ModuleDict(
            {level: nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) for level in ("p6", "p7")}
        )
        self.drop_block = DropBlock(drop_block)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as GLIP does: uniform Kaiming weights for a linear activation, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map stage outputs, fine to coarse, to P3..P7, each of `out_channels` and half the size of the one before."""
        coarsest = self.stages[-1]
        top_down = self.get_submodule(f"fpn_inner{coarsest}")(features[-1])
        levels = [self.get_submodule(f"fpn_layer{coarsest}")(top_down)]
        for stage, feature in reversed(list(zip(self.stages[:-1], features[:-1]))):
            lateral = self.get_submodule(f"fpn_inner{stage}")(feature)
            top_down = lateral + functional.interpolate(top_down, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.get_submodule(f"fpn_layer{stage}")(self.drop_block(top_down)))
        p6 = self.top_blocks["p6"](levels[-1])
        p7 = self.top_blocks["p7"](functional.relu(p6))
        return [*levels, p6, p7]


# So many tokens at a time is what a Swin block takes on a CPU: all that it computes of them then stays in the caches.
_CPU_TOKENS = 1024


def _takes_parts(module: nn.Module, tokens: Tensor) -> bool:
    # Recording the gradients of many parts costs what the caches give, and a compiler would unroll the loop over them.
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (tokens, *module.parameters())))


def _replace(tokens: Tensor, results: Iterable[Tensor], rows: int) -> Tensor:
    """The results for `rows` tokens at a time, computed as they are taken, in the place of the tokens.

    A Swin block made these tokens for this one use, and new memory of their size costs a CPU more than the results do.
    """
    for place, result in zip(tokens.split(rows), results):
        place.copy_(result)
    return tokens


class WindowAttention(SwinAttention):
    """Attention of a Swin block, on a CPU over few windows at a time; its weights are not returned there."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Any]:
        attend = super().forward
        if not _takes_parts(self, hidden_states):
            return attend(hidden_states, attention_mask, **kwargs)
        count, size, _ = hidden_states.shape
        rows = max(_CPU_TOKENS // size, 1)
        windows, masks = hidden_states.split(rows), repeat(None)
        if attention_mask is not None:
            masks = attention_mask.repeat(count // len(attention_mask), 1, 1).split(rows)
        results = (attend(part, mask, **kwargs)[0] for part, mask in zip(windows, masks))
        return _replace(hidden_states, results, rows), None


class StochasticMLP(nn.Module):
    """MLP branch of a Swin block with stochastic depth, which transformers gives to the attention branch alone."""

    def __init__(self, mlp: SwinMLP, drop_path: nn.Module) -> None:
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = mlp.fc1, mlp.activation_fn, mlp.fc2
        self.drop_path = drop_path

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not _takes_parts(self, hidden_states):
            return self.drop_path(self._transform(hidden_states))
        tokens = hidden_states.flatten(0, -2)
        results = map(self._transform, tokens.split(_CPU_TOKENS))
        return self.drop_path(_replace(tokens, results, _CPU_TOKENS).view_as(hidden_states))

    def _transform(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(tokens)))


class GlipBackbone(nn.Module):
    """Swin body and feature pyramid: pixels to the five maps that the head reads."""

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.body = SwinBackbone(cast(SwinConfig, config.backbone_config))
        # The final norm of SwinModel only feeds its last_hidden_state, which no detector reads.
        self.body.swin.layernorm = nn.Identity()  # type: ignore[assignment]
        for block in [module for module in self.body.modules() if isinstance(module, SwinLayer)]:
            block.attention.__class__ = WindowAttention  # with the weights that it has
            block.mlp = StochasticMLP(block.mlp, block.drop_path)  # type: ignore[assignment]
        first_stage = int(self.body.out_features[0].removeprefix("stage"))
        self.fpn = FeaturePyramid(self.body.channels, first_stage, config.hidden_size, float(config.drop_block))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map normalised BGR pixels (B, 3, H, W) to five maps (B, hidden_size, h, w) of strides 8 to 128."""
        return self.fpn(self.body(pixel_values).feature_maps)


__all__ = ["DropBlock", "FeaturePyramid", "GlipBackbone", "StochasticMLP"]
