"""What meets in a fusion layer, and the layers that bring it together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .prototype_rows import PrototypeRows


class Projections(NamedTuple):
    """The linear layers of a fusion attention.

    Attributes:
        query, key: (d_v -> E) of the image and (d_l -> E) of the text, whose products are the scores.
        image_values, text_values: (d_v -> E) and (d_l -> E).
        image_output, text_output: (E -> d_v) and (E -> d_l).
    """

    query: nn.Linear
    key: nn.Linear
    image_values: nn.Linear
    text_values: nn.Linear
    image_output: nn.Linear
    text_output: nn.Linear


class AbsorbedText(NamedTuple):
    """Text rows with the projections of the image absorbed: ``x keys^T + bias`` are the scores of image tokens x, and
    weights times ``values`` is what x gathers, output projection included.

    Attributes:
        keys, values: (B, H, L, d_v).
        bias: (B, H, L), -inf on rows that are hidden from the image.
    """

    keys: Tensor
    bias: Tensor
    values: Tensor

    def masked(self, text_mask: Tensor | None) -> AbsorbedText:
        """Hide the rows where the (B, L) mask is zero from the image."""
        if text_mask is None:
            return self
        return self._replace(bias=self.bias.masked_fill(text_mask[:, None] == 0, -torch.inf))

    def expand(self, batch: int) -> AbsorbedText:
        """Rows of a batch of one for every image of a batch, without a copy."""
        return AbsorbedText(*(rows.expand(batch, *rows.shape[1:]) for rows in self))

    def followed_by(self, rows: AbsorbedText) -> AbsorbedText:
        """These rows, then those of a batch of one behind the text of every image."""
        pairs = zip(self, rows.expand(self.keys.shape[0]))
        return AbsorbedText(*(torch.cat(pair, dim=2) for pair in pairs))


class PromptRows(NamedTuple):
    """Prompts of one fusion layer in both input spaces.

    Attributes:
        image: (K, d_v) rows that the text attends to.
        text: (K, d_l) rows that the image attends to.
        text_visible: False hides the text rows from the image (the behaviour of the released SDPT code).
        gate: (H,) factor per head on what the prompts contribute, or None for one joint softmax.
        absorbed: the text rows as a batch of one in folded form, gate included, where that was computed before.
    """

    image: Tensor
    text: Tensor
    text_visible: bool = True
    gate: Tensor | None = None
    absorbed: AbsorbedText | None = None


class FusionInputs(NamedTuple):
    """Everything that one fusion attention brings together.

    Attributes:
        v, l: (B, N, d_v) image and (B, L, d_l) text tokens.
        text_mask, image_mask: (B, L) and (B, N), non-zero on real tokens; None where all are real.
        prompts: rows that join the tokens of every image, or None.
    """

    v: Tensor
    l: Tensor
    text_mask: Tensor | None = None
    image_mask: Tensor | None = None
    prompts: PromptRows | PrototypeRows | None = None

    def with_prompts_as_tokens(self) -> FusionInputs:
        """The same without prompts: they stand behind the tokens, as the last K of both sides."""
        if self.prompts is None:
            return self
        batch, count = self.v.shape[0], self.prompts.image.shape[0]
        text_mask = self.l.new_ones(self.l.shape[:2]) if self.text_mask is None else self.text_mask
        image_mask = self.image_mask
        return FusionInputs(
            v=torch.cat([self.v, self.prompts.image.expand(batch, -1, -1)], dim=1),
            l=torch.cat([self.l, self.prompts.text.expand(batch, -1, -1)], dim=1),
            text_mask=nn.functional.pad(text_mask, (0, count), value=int(self.prompts.text_visible)),
            image_mask=None if image_mask is None else nn.functional.pad(image_mask, (0, count), value=1),
        )


__all__ = ["AbsorbedText", "FusionInputs", "Projections", "PromptRows"]
