"""Grounding DINO and MM Grounding DINO of transformers as hosts of prompts in their fusion attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection
from transformers.loss.loss_grounding_dino import GroundingDinoForObjectDetectionLoss
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoBiMultiHeadAttention
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import MMGroundingDinoBiMultiHeadAttention

from sdpt_ext.nn import FusionAttention, FusionInputs, Projections, PromptRows

GroundingDino: TypeAlias = GroundingDinoForObjectDetection | MMGroundingDinoForObjectDetection
_Attended: TypeAlias = tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class _PromptedAttention(FusionAttention):
    """The host's fusion attention, which prompts may join.

    Without prompts it runs the host's own code. With prompts, attention weights are returned by the "eager" backend
    alone, the prompts' weights last; the other backends never form them and return None.

    Attributes:
        backend: "auto" (the fastest exact one), "ext" (compiled), "torch" (folded) or "eager" (textbook).
        prompt: None, or a module that yields the layer's :class:`~sdpt_ext.nn.PromptRows`.
    """

    backend: str
    prompt: nn.Module | None

    @property
    def projections(self) -> Projections:
        host = cast(Any, self)
        return Projections(
            query=host.vision_proj,
            key=host.text_proj,
            image_values=host.values_vision_proj,
            text_values=host.values_text_proj,
            image_output=host.out_vision_proj,
            text_output=host.out_text_proj,
        )

    def forward(
        self,
        vision_features: Tensor,
        text_features: Tensor,
        vision_attention_mask: Tensor | None = None,
        text_attention_mask: Tensor | None = None,
        **options: Any,
    ) -> _Attended:
        """As the host's, whose masks are True on padding."""
        if self.prompt is None:
            host: Any = super()
            return host.forward(vision_features, text_features, vision_attention_mask, text_attention_mask, **options)
        prompts: PromptRows = self.prompt(self)
        image_mask = None if vision_attention_mask is None else ~vision_attention_mask
        text_mask = None if text_attention_mask is None else ~text_attention_mask
        delta_v, delta_l = self.attend(vision_features, text_features, text_mask, prompts, self.backend, image_mask)
        if self.backend != "eager":
            return (delta_v, None), (delta_l, None)
        inputs = FusionInputs(vision_features, text_features, text_mask, image_mask, prompts)
        to_text, to_image = self.attention_weights(inputs.with_prompts_as_tokens())
        to_text, to_image = to_text[:, :, : delta_v.shape[1]], to_image[:, :, : delta_l.shape[1]]
        return (delta_v, to_text.flatten(0, 1)), (delta_l, to_image.flatten(0, 1))


class PromptedGroundingDinoAttention(_PromptedAttention, GroundingDinoBiMultiHeadAttention):  # type: ignore[misc]
    """Fusion attention of Grounding DINO with room for prompts."""


class PromptedMMGroundingDinoAttention(_PromptedAttention, MMGroundingDinoBiMultiHeadAttention):  # type: ignore[misc]
    """Fusion attention of MM Grounding DINO with room for prompts."""


_PROMPTED: dict[type[nn.Module], type[nn.Module]] = {
    GroundingDinoBiMultiHeadAttention: PromptedGroundingDinoAttention,
    MMGroundingDinoBiMultiHeadAttention: PromptedMMGroundingDinoAttention,
}


def fusion_attentions(model: GroundingDino) -> list[_PromptedAttention]:
    """The fusion attention of every encoder layer, first layer first, made ready for prompts in place.

    Only the class of these modules changes, not their tensors, their names or what they compute.

    Raises:
        TypeError: the model's fusion attention is not transformers' own.
    """
    return [_make_room_for_prompts(layer.fusion_layer.attn) for layer in model.model.encoder.layers]


def _make_room_for_prompts(attention: nn.Module) -> _PromptedAttention:
    if not isinstance(attention, _PromptedAttention):
        if type(attention) not in _PROMPTED:
            raise TypeError(f"fusion attention of class {type(attention).__name__} is not transformers' own")
        attention.__class__ = _PROMPTED[type(attention)]
        attention.backend, attention.prompt = "auto", None  # type: ignore[assignment]
    return cast(_PromptedAttention, attention)


def loss_with_own_captions(
    logits: Tensor,
    labels: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    pred_boxes: Tensor,
    config: Any,
    label_maps: Sequence[Tensor],
    *others: Any,
    **outputs: Any,
) -> Any:
    """The loss of transformers for batches whose captions differ.

    Transformers takes the targets of every image from the second image's caption on from one place in the list of all
    classes, which is right for equal captions alone. With one list for all images there is one place to take them from.

    Args:
        label_maps: per image (C, T), 1 on the tokens of each class of its caption; other arguments as in transformers.
    """
    starts = [0, *accumulate(len(classes) for classes in label_maps)]
    moved = [{**label, "class_labels": label["class_labels"] + start} for label, start in zip(labels, starts)]
    together = [torch.cat(list(label_maps))] * len(label_maps)
    return GroundingDinoForObjectDetectionLoss(logits, moved, device, pred_boxes, config, together, *others, **outputs)


__all__ = [
    "GroundingDino",
    "PromptedGroundingDinoAttention",
    "PromptedMMGroundingDinoAttention",
    "fusion_attentions",
    "loss_with_own_captions",
]
