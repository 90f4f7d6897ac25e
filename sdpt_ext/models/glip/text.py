"""Text side of GLIP: a BERT encoder whose last hidden states enter the head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from sdpt_ext.nn import Memo

from .caption_cache import CaptionCache
from .configuration import GlipConfig

# A model that was changed in code (adapters, hooks) follows from more than its weights.
_PLAIN_PACKAGES = ("torch", "transformers")


class GlipTextEncoder(nn.Module):
    """BERT without pooler.

    GLIP hands the hidden states of every position to the head, padding included. At rest (in evaluation mode, where no
    gradient is wanted) the captions of the last images are remembered as long as no weight changes.

    Attributes:
        context: None, or a module that encodes captions with words of its own: (BERT, ids, mask) -> hidden states.
        prompt: None, or a module (B, T, C) -> (B, T, C) behind BERT; what it makes of a caption is not remembered.
    """

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.model = BertModel(cast(BertConfig, config.text_config), add_pooling_layer=False)
        self.context: nn.Module | None = None
        self.prompt: nn.Module | None = None
        self._captions: Memo[CaptionCache] = Memo()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode captions.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 on real tokens and 0 on padding.

        Returns:
            (B, T, C) hidden states of the last layer; those of padding are not zeroed.

        Raises:
            ValueError: the captions are longer than the position table.
        """
        longest = self.model.config.max_position_embeddings
        if input_ids.shape[1] > longest:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} tokens per caption but the text encoder takes at most {longest}; "
                "split the classes over several captions"
            )
        hidden = self._remembered(input_ids, attention_mask)
        return hidden if self.prompt is None else self.prompt(hidden)

    def _remembered(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if not self._follows_from_weights():
            self._captions.clear()
            return self._encode(input_ids, attention_mask)
        context = () if self.context is None else self.context.parameters()
        captions = self._captions((*self.model.parameters(), *self.model.buffers(), *context), CaptionCache)
        key = (self.model.config._attn_implementation, _content(input_ids), _content(attention_mask))
        return captions.get(key, lambda: self._encode(input_ids, attention_mask))

    def _encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.context is not None:
            return self.context(self.model, input_ids, attention_mask)
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def _follows_from_weights(self) -> bool:
        if torch.compiler.is_compiling():
            return False
        return not any(
            module.training
            or module._forward_hooks
            or module._forward_pre_hooks
            or "forward" in vars(module)
            or type(module).__module__.partition(".")[0] not in _PLAIN_PACKAGES
            for module in self.model.modules()
        )

    def train(self, mode: bool = True) -> GlipTextEncoder:
        # Every evaluation starts anew. A training loop calls this at every step, and a frozen encoder is at rest there.
        if not mode:
            self._captions.clear()
        return super().train(mode)


def _content(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.device, tuple(tensor.shape), tuple(tensor.flatten().tolist())


__all__ = ["GlipTextEncoder"]
