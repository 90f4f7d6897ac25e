"""The operators: compiled kernels with plain PyTorch references beside them."""

from __future__ import annotations

from sdpt_ext.ops.bi_attention import bi_attention
from sdpt_ext.ops.deform_conv import deform_conv2d
from sdpt_ext.ops.join_prompts import join_prompts
from sdpt_ext.ops.nms import nms

__all__ = ["bi_attention", "deform_conv2d", "join_prompts", "nms"]
