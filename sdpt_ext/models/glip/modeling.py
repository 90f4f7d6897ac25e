"""GLIP as a transformers model: pixels and captions in, boxes aligned with tokens out (Li et al., CVPR 2022)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .anchors import level_anchors
from .backbone import GlipBackbone
from .captions import longest_caption
from .configuration import GlipConfig
from .head import LOGIT_LIMIT, VLDyHead
from .losses import detection_loss
from .official import convert_official_state_dict, official_config, read_official_checkpoint
from .text import GlipTextEncoder


@dataclass
class GlipOutput(ModelOutput):
    """Predictions of :class:`GlipForObjectDetection` for N positions and T tokens.

    Attributes:
        loss: sum of the losses, when labels were given.
        loss_dict: the losses by name.
        logits: (B, N, T) alignment logits.
        box_deltas: (B, N, 4) deltas to the anchors.
        centerness: (B, N, 1) logits.
        level_sizes: (h, w) of the five levels, whose positions follow each other in N.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    box_deltas: Tensor | None = None
    centerness: Tensor | None = None
    level_sizes: tuple[tuple[int, int], ...] | None = None


class GlipForObjectDetection(PreTrainedModel):
    """Swin + FPN and BERT, fused layer by layer in a dynamic head."""

    config_class = GlipConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    config: GlipConfig
    _supports_sdpa = True

    def __init__(self, config: GlipConfig) -> None:
        super().__init__(config)
        self.backbone = GlipBackbone(config)
        self.text_encoder = GlipTextEncoder(config)
        self.head = VLDyHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every module initialises itself when it is built."""

    def set_fusion_backend(self, backend: str) -> None:
        """Choose "auto", "ext", "torch" or "eager" for every fusion block."""
        for block in self.head.fusion_blocks:
            block.backend = backend

    def anchors(self, level_sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
        """Anchors (h*w, 4) of every level, inclusive xyxy pixels."""
        return level_anchors(
            level_sizes, self.config.anchor_strides, self.config.anchor_sizes, self.device, torch.float32
        )

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: list[dict[str, Tensor]] | None = None,
        return_dict: bool | None = None,
        padding_logits: bool = True,
    ) -> GlipOutput:
        """Detect what the captions name.

        Args:
            pixel_values: (B, 3, H, W) normalised BGR images, padded with zeros on the right and at the bottom.
            input_ids, attention_mask: (B, T) captions and 1 on their real tokens.
            labels: per image ``boxes`` (G, 4) inclusive xyxy pixels of the input, ``class_labels`` (G,) from 1 and
                ``positive_map`` (G, T), 1 on the tokens of the box's class; G may be 0.
            padding_logits: False leaves out the padding behind the longest caption, whose logits no loss and no
                detection reads: they hold the lowest logit then, and the captions cost no more than their real
                tokens. True computes them as the official code does.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        self._check_inputs(pixel_values, input_ids, attention_mask, labels)
        features = self.backbone(pixel_values)
        read = input_ids.shape[1] if padding_logits else longest_caption(attention_mask)
        hidden = self.text_encoder(input_ids[:, :read], attention_mask[:, :read])
        predictions = self.head(features, hidden, attention_mask[:, :read])
        logits = nn.functional.pad(predictions.logits, (0, input_ids.shape[1] - read), value=-LOGIT_LIMIT)
        level_sizes = tuple((feature.shape[-2], feature.shape[-1]) for feature in features)
        output = GlipOutput(
            logits=logits,
            box_deltas=predictions.box_deltas,
            centerness=predictions.centerness,
            level_sizes=level_sizes,
        )
        if labels is not None:
            output.loss_dict = detection_loss(
                logits,
                predictions.box_deltas,
                predictions.centerness,
                self.anchors(level_sizes),
                attention_mask,
                labels,
            )
            output.loss = torch.stack(list(output.loss_dict.values())).sum()
        return output

    def _check_inputs(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: list[dict[str, Tensor]] | None
    ) -> None:
        batch = pixel_values.shape[0]
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values must be (B, 3, H, W), got {tuple(pixel_values.shape)}")
        if input_ids.shape != attention_mask.shape or input_ids.shape[0] != batch:
            raise ValueError(
                f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)} must both be "
                f"(B, T) with B = {batch}, the number of images"
            )
        if labels is not None and len(labels) != batch:
            raise ValueError(f"labels must hold one dictionary per image: got {len(labels)} for {batch} images")

    def load_official_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load weights under the official GLIP names, strictly.

        Raises:
            ValueError: missing, unexpected or mis-shaped keys, all of them listed.
        """
        self.load_state_dict(convert_official_state_dict(state_dict, self.config))

    @classmethod
    def from_official(cls, path: str | os.PathLike[str], config: GlipConfig | None = None) -> GlipForObjectDetection:
        """Build a model from a released GLIP checkpoint; its size is read off the weights unless ``config`` is given.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no GLIP checkpoint, or does not fit; the message lists every key that differs.
        """
        state_dict = read_official_checkpoint(path)
        model = cls(official_config(state_dict) if config is None else config)
        model.load_official_state_dict(state_dict)
        return model.eval()


__all__ = ["GlipForObjectDetection", "GlipOutput"]
