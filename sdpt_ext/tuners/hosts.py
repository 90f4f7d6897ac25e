"""The detectors that can hold prompts: all that tuning knows of them is their fusion layers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import nn
from transformers import GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection

from sdpt_ext.models.glip.modeling import GlipForObjectDetection
from sdpt_ext.models.grounding_dino import fusion_attentions
from sdpt_ext.nn import FusionAttention

_GROUNDING_DINO = (GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection)
HOSTS = (GlipForObjectDetection, *_GROUNDING_DINO)


class PromptHolder(Protocol):
    """A module with room for prompts.

    Attributes:
        prompt: None, or a module that yields the layer's :class:`~sdpt_ext.nn.PromptRows`.
        backend: "auto", "ext", "torch" or "eager".
    """

    prompt: nn.Module | None
    backend: str


class FusionLayer(NamedTuple):
    """One fusion layer of a host: the module that holds its prompt, and the attention which the prompt joins."""

    holder: PromptHolder
    attention: FusionAttention


def fusion_layers(model: nn.Module) -> list[FusionLayer]:
    """The fusion layers of a host, first layer first.

    Raises:
        TypeError: the model is not a supported host.
    """
    if isinstance(model, GlipForObjectDetection):
        return [FusionLayer(block, block.attn) for block in model.head.fusion_blocks]
    if isinstance(model, _GROUNDING_DINO):
        return [FusionLayer(attention, attention) for attention in fusion_attentions(model)]
    supported = ", ".join(host.__name__ for host in HOSTS)
    raise TypeError(f"SDPT needs a fusion-based detector ({supported}), got {type(model).__name__}")


__all__ = ["HOSTS", "FusionLayer", "PromptHolder", "fusion_layers"]
