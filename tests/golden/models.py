"""Detectors whose weights follow from their official names."""

from __future__ import annotations

import torch

from sdpt_ext.models.glip.configuration import GlipConfig
from sdpt_ext.models.glip.modeling import GlipForObjectDetection
from sdpt_ext.models.glip.official import official_shapes

from . import fill


def filled_model(config: GlipConfig) -> GlipForObjectDetection:
    """A GLIP in evaluation mode that has gone through the conversion of official checkpoints."""
    weights = {
        key: torch.from_numpy(fill.fill(key, shape))
        for key, shape in official_shapes(config).items()
        if fill.is_filled(key)
    }
    model = GlipForObjectDetection(config)
    model.load_official_state_dict(weights)
    return model.eval()
