"""Pre-training data of the nano model."""

from sdpt_ext.data.pretrain.examples import Photographs, ShapeScenes
from sdpt_ext.data.pretrain.stream import PretrainStream, StreamOptions, pretrain_stream

__all__ = ["Photographs", "PretrainStream", "ShapeScenes", "StreamOptions", "pretrain_stream"]
