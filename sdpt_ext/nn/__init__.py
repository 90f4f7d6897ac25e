"""Layers built on the ops."""

from .bi_attention import BiAttentionBlock, BiMultiHeadAttention
from .dyconv import DyConv, ModulatedDeformConv
from .fusion_attention import FusionAttention, Projections, PromptRows

__all__ = [
    "BiAttentionBlock",
    "BiMultiHeadAttention",
    "DyConv",
    "FusionAttention",
    "ModulatedDeformConv",
    "Projections",
    "PromptRows",
]
