"""GLIP's fusion block: image and text tokens attend to each other through one score matrix (GLIP, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fusion_attention import FusionAttention
from .fusion_inputs import Projections


class BiMultiHeadAttention(FusionAttention, nn.Module):
    """Multi-head attention in both directions between (B, N, v_dim) image and (B, L, l_dim) text tokens."""

    def __init__(self, v_dim: int, l_dim: int, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.v_dim, self.l_dim, self.embed_dim, self.num_heads = v_dim, l_dim, embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.dropout = dropout
        self.v_proj = nn.Linear(v_dim, embed_dim)
        self.l_proj = nn.Linear(l_dim, embed_dim)
        self.values_v_proj = nn.Linear(v_dim, embed_dim)
        self.values_l_proj = nn.Linear(l_dim, embed_dim)
        self.out_v_proj = nn.Linear(embed_dim, v_dim)
        self.out_l_proj = nn.Linear(embed_dim, l_dim)
        self.reset_parameters()

    @property
    def projections(self) -> Projections:
        return Projections(
            query=self.v_proj,
            key=self.l_proj,
            image_values=self.values_v_proj,
            text_values=self.values_l_proj,
            image_output=self.out_v_proj,
            text_output=self.out_l_proj,
        )

    def reset_parameters(self) -> None:
        for layer in self.projections:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class BiAttentionBlock(nn.Module):
    """Pre-norm fusion block with scaled residuals; the residuals are taken from the normalised tensors.

    Args:
        v_dim, l_dim: widths of the image and text tokens.
        embed_dim: width of the aligned space; num_heads heads of embed_dim / num_heads.
        init_values: start of the residual scales gamma (GLIP: 1 / number of fusion layers).
        dropout: dropout on both attention weights while training.

    Attributes:
        backend: "auto" (the fastest exact one), "ext" (compiled), "torch" (folded) or "eager" (textbook).
        prompt: None, or a module that yields the layer's :class:`~sdpt_ext.nn.PromptRows`.
    """

    def __init__(
        self,
        v_dim: int,
        l_dim: int,
        embed_dim: int,
        num_heads: int,
        init_values: float = 1e-4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(v_dim)
        self.layer_norm_l = nn.LayerNorm(l_dim)
        self.attn = BiMultiHeadAttention(v_dim, l_dim, embed_dim, num_heads, dropout)
        self.gamma_v = nn.Parameter(torch.full((v_dim,), init_values))
        self.gamma_l = nn.Parameter(torch.full((l_dim,), init_values))
        self.backend = "auto"
        self.prompt: nn.Module | None = None

    def forward(self, v: Tensor, l: Tensor, attention_mask_l: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse (B, N, v_dim) image with (B, L, l_dim) text tokens; attention_mask_l (B, L) is 1 on real tokens."""
        l = self.layer_norm_l(l)
        prompts = None if self.prompt is None else self.prompt(self.attn)
        v, delta_l = self.attn.add_attended(
            v, self.layer_norm_v, self.gamma_v, l, attention_mask_l, prompts, self.backend
        )
        return v, l + self.gamma_l * delta_l


__all__ = ["BiAttentionBlock", "BiMultiHeadAttention"]
