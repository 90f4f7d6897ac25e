"""Layers built on the ops."""

from .bi_attention import BiAttentionBlock, BiMultiHeadAttention, PromptRows
from .dyconv import DyConv, ModulatedDeformConv

__all__ = ["BiAttentionBlock", "BiMultiHeadAttention", "DyConv", "ModulatedDeformConv", "PromptRows"]
