"""Prompts around the text encoder of a GLIP: before it (CoOp) or behind it (GLIP's own)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

from sdpt_ext.models.glip.captions import longest_caption
from sdpt_ext.models.glip.modeling import GlipForObjectDetection

from .configuration import TuningConfig
from .freezing import freeze

_INITIAL_STD = 0.02


@dataclass(frozen=True)
class CoOpConfig(TuningConfig):
    """What to tune.

    Attributes:
        num_tokens: context vectors K, shared by all classes.
        host_dropout: keep dropout of the frozen host active while training.

    Raises:
        ValueError: no context vector.
    """

    num_tokens: int = 10

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {self.num_tokens}")


class PositionTable(nn.Module):
    """A vector for every position of a caption, added to what the text encoder makes of its token."""

    def __init__(self, model: GlipForObjectDetection) -> None:
        super().__init__()
        words = model.text_encoder.model.get_input_embeddings().weight
        self.table = nn.Parameter(words.new_zeros(model.config.max_text_tokens, words.shape[1]))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, C) hidden states -> (B, T, C).

        Raises:
            ValueError: the captions are longer than the table.
        """
        if hidden.shape[1] > len(self.table):
            raise ValueError(
                f"captions of {hidden.shape[1]} tokens, but the text prompt has {len(self.table)} positions; "
                "split the classes over several captions"
            )
        return hidden + self.table[: hidden.shape[1]]


class ContextVectors(nn.Module):
    """K words of no language that stand behind [CLS] in every caption."""

    def __init__(self, bert: BertModel, config: CoOpConfig) -> None:
        super().__init__()
        words = bert.get_input_embeddings().weight
        self.vectors = nn.Parameter(words.new_empty(config.num_tokens, words.shape[1]).normal_(std=_INITIAL_STD))

    def forward(self, bert: BertModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, T) token ids with the context, and leave its positions out of the (B, T, C) hidden states.

        Padding behind the longest caption, which nothing reads, is zeros: it takes no room in the position table.

        Raises:
            ValueError: captions and context together are longer than the position table.
        """
        count, read = len(self.vectors), longest_caption(attention_mask)
        longest = bert.config.max_position_embeddings
        if read + count > longest:
            raise ValueError(
                f"a caption of {read} tokens and {count} context vectors, but the text encoder takes at most {longest} "
                "together; use fewer of them or split the classes over several captions"
            )
        words = bert.get_input_embeddings()(input_ids[:, :read])
        context = self.vectors.expand(len(words), -1, -1)
        hidden = bert(
            inputs_embeds=torch.cat([words[:, :1], context, words[:, 1:]], dim=1),
            attention_mask=functional.pad(attention_mask[:, :read], (count, 0), value=1),
        ).last_hidden_state
        hidden = torch.cat([hidden[:, :1], hidden[:, 1 + count :]], dim=1)
        return functional.pad(hidden, (0, 0, 0, input_ids.shape[1] - read))


def text_prompt(model: GlipForObjectDetection, config: TuningConfig) -> None:
    """Freeze a detector and add a table of zeros behind its text encoder, in place (GLIP, section 5.2).

    It is "language_prompt_v2" of the official code. An earlier table is replaced.
    """
    freeze(model, host_dropout=config.host_dropout)
    model.text_encoder.prompt = PositionTable(model)
    model.text_prompt_config = config  # type: ignore[assignment]


def coop(model: GlipForObjectDetection, config: CoOpConfig) -> None:
    """Freeze a detector and add context vectors to its captions, in place (Zhou et al., 2022); earlier ones go."""
    freeze(model, host_dropout=config.host_dropout)
    model.text_encoder.context = ContextVectors(model.text_encoder.model, config)
    model.coop_config = config  # type: ignore[assignment]


__all__ = ["CoOpConfig", "ContextVectors", "PositionTable", "coop", "text_prompt"]
