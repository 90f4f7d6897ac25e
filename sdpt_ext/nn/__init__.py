"""Layers built on the ops."""

from .bi_attention import BiAttentionBlock, BiMultiHeadAttention
from .dyconv import DyConv, ModulatedDeformConv
from .fusion_attention import FusionAttention
from .fusion_inputs import AbsorbedText, FusionInputs, Projections, PromptRows
from .memo import Memo
from .prototype_rows import PromptMap, PrototypeRows

__all__ = [
    "AbsorbedText",
    "BiAttentionBlock",
    "BiMultiHeadAttention",
    "DyConv",
    "FusionAttention",
    "FusionInputs",
    "Memo",
    "ModulatedDeformConv",
    "Projections",
    "PromptMap",
    "PromptRows",
    "PrototypeRows",
]
