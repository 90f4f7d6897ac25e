"""Prompts of a layer that trains, mapped in the step that joins them to the text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from sdpt_ext.ops.join_prompts import join_prompts

from .fusion_inputs import AbsorbedText, PromptRows


class PromptMap(NamedTuple):
    """Everything that a frozen fusion layer makes of a token, as :func:`~sdpt_ext.ops.join_prompts.join_prompts` takes
    it.

    Attributes:
        weight: (F, E).
        offset: (F,).
    """

    weight: Tensor
    offset: Tensor


class PrototypeRows:
    """What :class:`PromptRows` holds, computed where it is read.

    Args:
        tokens: (K, E) prototype tokens.
        prompt_map: of the layer that they belong to.
        gate: (H,) factor per head on what the prompts contribute, or None for one joint softmax.
        unfolded: the rows of both input spaces, for the textbook form.
    """

    text_visible = True

    def __init__(
        self, tokens: Tensor, prompt_map: PromptMap, gate: Tensor | None, heads: int, unfolded: Callable[[], PromptRows]
    ) -> None:
        self.tokens, self.prompt_map, self.gate = tokens, prompt_map, gate
        self._heads, self._unfolded = heads, unfolded

    @cached_property
    def text(self) -> Tensor:
        return self._unfolded().text

    @cached_property
    def _alone(self) -> tuple[AbsorbedText, Tensor]:
        width = (self.prompt_map.offset.shape[0] - self._heads) // (2 * self._heads + 1)
        no_keys = self.tokens.new_empty(1, self._heads, 0, width)
        return self.join(AbsorbedText(no_keys, no_keys[..., 0], no_keys))

    @property
    def image(self) -> Tensor:
        return self._alone[1]

    @property
    def absorbed(self) -> AbsorbedText:
        """The text rows as a batch of one in folded form, gate included."""
        rows, gate = self._alone[0], self.gate
        return rows if gate is None else rows._replace(values=rows.values * gate[:, None, None])

    def join(self, text: AbsorbedText) -> tuple[AbsorbedText, Tensor]:
        """The text followed by the prompts, and their image rows."""
        *joined, image = join_prompts(*text, self.tokens, *self.prompt_map)
        return AbsorbedText(*joined), image


__all__ = ["PromptMap", "PrototypeRows"]
