"""GLIP's DyConv: scale-aware deformable convolutions over a pyramid (Dynamic Head, Dai et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpt_ext.ops import deform_conv2d

_TAPS = 9


class ModulatedDeformConv(nn.Module):
    """3x3 modulated deformable convolution with bias, padding 1 (DCNv2, Zhu et al., 2019)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, mask, self.weight, self.bias, stride=self.stride, padding=1)


class Conv3x3Norm(nn.Module):
    """Deformable convolution followed by group normalisation."""

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = ModulatedDeformConv(channels, channels, stride)
        self.bn = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return self.bn(self.conv(x, offset, mask))


class HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3.0) / 6.0


class DyReLU(nn.Module):
    """max(a1 x + b1, a2 x + b2) with coefficients from the global average (Chen et al., 2020)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(),
            nn.Linear(channels // reduction, 4 * channels),
            HardSigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        coefficients = self.fc(x.mean((2, 3)))[..., None, None] - 0.5
        a1, b1, a2, b2 = coefficients.chunk(4, dim=1)
        # max(p, q) = q + relu(p - q): its backward visits the map less often than that of a maximum.
        second = torch.addcmul(b2, x, 2.0 * a2)
        return second.add_(torch.addcmul(b1 - b2, x, 2.0 * (a1 - a2) + 1.0).relu_())


class DyConv(nn.Module):
    """Mix every pyramid level with its neighbours.

    Offsets and masks of a level serve all three branches. The branch that comes from the coarser level is smaller
    than them: the convolution then reads their memory flat, as the official kernel does and as trained weights expect.
    """

    def __init__(self, channels: int, groups: int = 16) -> None:
        super().__init__()
        self.DyConv = nn.ModuleList(Conv3x3Norm(channels, stride, groups) for stride in (1, 1, 2))
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1), nn.ReLU())
        self.h_sigmoid = HardSigmoid()
        self.relu = DyReLU(channels)
        self.offset = nn.Conv2d(channels, 3 * _TAPS, 3, padding=1)

    def _candidates(self, features: list[Tensor], level: int) -> list[Tensor]:
        from_above, same, from_below = self.DyConv
        feature = features[level]
        # Contiguous once, or every branch would copy them.
        offset, mask = self.offset(feature).contiguous().split((2 * _TAPS, _TAPS), dim=1)
        mask = mask.sigmoid()
        candidates = [same(feature, offset, mask)]
        if level > 0:
            candidates.append(from_below(features[level - 1], offset, mask))
        if level < len(features) - 1:
            coarse = from_above(features[level + 1], offset, mask)
            size = feature.shape[-2:]
            candidates.append(F.interpolate(coarse, size=size, mode="bilinear", align_corners=True))
        return candidates

    def _mix(self, candidates: list[Tensor]) -> Tensor:
        """Mean of the candidates, each times its own attention."""
        first, *others = candidates
        attention = [self.h_sigmoid(self.AttnConv(c)) / len(candidates) for c in candidates]
        mixed = first * attention[0]
        for candidate, weight in zip(others, attention[1:]):
            mixed.addcmul_(candidate, weight)
        return mixed

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Five (B, C, h, w) maps, finest first -> five maps of the same shapes."""
        return [self.relu(self._mix(self._candidates(features, level))) for level in range(len(features))]


__all__ = ["Conv3x3Norm", "DyConv", "DyReLU", "HardSigmoid", "ModulatedDeformConv"]
