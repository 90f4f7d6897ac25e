"""Configuration of GLIP: the two released sizes and a small one for CPUs and tests."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, PreTrainedConfig, SwinConfig
from transformers.configuration_utils import SubConfigSpec

_SWIN_STAGES = ["stage2", "stage3", "stage4"]


def _swin(**sizes: Any) -> SwinConfig:
    return SwinConfig(**{**sizes, "out_features": _SWIN_STAGES})


@strict
class GlipConfig(PreTrainedConfig):
    """Sizes of a GLIP detector (Swin + FPN, BERT, fused dynamic head).

    Args:
        backbone_config: Swin; its last three stages feed the feature pyramid.
        text_config: BERT text encoder; its sizes are also those of the head's BERT layers.
        hidden_size: channels of every pyramid level (d_v).
        num_head_layers: fusion + BERT + DyConv triples in the head.
        fusion_dim: width E of the aligned attention space.
        fusion_heads: attention heads of the fusion layer.
        fusion_dropout: dropout on both attention weights (training only).
        drop_block: DropBlock probability on the pyramid's top-down sums (training only).
        group_norm_groups: groups of the normalisation after each deformable convolution.
        num_class_logits: width of the unused classification layer that official checkpoints carry.
        anchor_sizes: side of the square anchor of each pyramid level, in pixels.
        anchor_strides: stride of each pyramid level, in pixels.
        max_text_tokens: longest caption, special tokens included.
        frozen_stages: parts of the Swin that stay frozen in full fine-tuning: the patch embedding, then its stages.
        initializer_range: standard deviation of the head's convolution weights.
    """

    model_type = "sdpt_glip"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(config_class=SwinConfig, init_kwargs={"out_features": _SWIN_STAGES}),
        "text_config": SubConfigSpec(config_class=BertConfig),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    num_head_layers: int = 6
    fusion_dim: int = 2048
    fusion_heads: int = 8
    fusion_dropout: float | int = 0.1
    drop_block: float | int = 0.3
    group_norm_groups: int = 16
    num_class_logits: int = 80
    anchor_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024)
    anchor_strides: list[int] | tuple[int, ...] = (8, 16, 32, 64, 128)
    max_text_tokens: int = 256
    frozen_stages: int = 0
    initializer_range: float = 0.01

    @property
    def text_hidden_size(self) -> int:
        """Width d_l of the text tokens."""
        return cast(BertConfig, self.text_config).hidden_size

    @classmethod
    def tiny(cls, **overrides: Any) -> GlipConfig:
        """GLIP-T: Swin-T, six head layers, 231.8 M parameters (released as glip_Swin_T_O365_GoldG)."""
        backbone = _swin(drop_path_rate=0.2)
        return cls(**{"backbone_config": backbone, "text_config": BertConfig(), **overrides})

    @classmethod
    def large(cls, **overrides: Any) -> GlipConfig:
        """GLIP-L: Swin-L with window 12, eight head layers, 430.4 M parameters (released as glip_Swin_L)."""
        backbone = _swin(
            embed_dim=192,
            depths=(2, 2, 18, 2),
            num_heads=(6, 12, 24, 48),
            window_size=12,
            drop_path_rate=0.4,
        )
        values = {"backbone_config": backbone, "text_config": BertConfig(), "num_head_layers": 8, "frozen_stages": 2}
        return cls(**{**values, **overrides})

    @classmethod
    def nano(cls, **overrides: Any) -> GlipConfig:
        """A 4 M parameter GLIP for CPUs: the same classes, smaller numbers, head_dim = hidden_size."""
        backbone = _swin(
            embed_dim=32,
            depths=(2, 2, 4, 2),
            num_heads=(2, 4, 8, 16),
            window_size=8,
            drop_path_rate=0.0,
        )
        text = BertConfig(
            vocab_size=2048,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        values: dict[str, Any] = {
            "backbone_config": backbone,
            "text_config": text,
            "hidden_size": 64,
            "num_head_layers": 3,
            "fusion_dim": 256,
            "fusion_heads": 4,
            "fusion_dropout": 0.0,
            "drop_block": 0.0,
            "anchor_sizes": (32, 64, 128, 256, 512),
        }
        return cls(**{**values, **overrides})


__all__ = ["GlipConfig"]
