"""Text side of GLIP: a BERT encoder whose last hidden states enter the head."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from .configuration import GlipConfig


class GlipTextEncoder(nn.Module):
    """BERT without pooler.

    GLIP hands the hidden states of every position to the head, padding included.
    """

    def __init__(self, config: GlipConfig) -> None:
        super().__init__()
        self.model = BertModel(cast(BertConfig, config.text_config), add_pooling_layer=False)

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
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


__all__ = ["GlipTextEncoder"]
