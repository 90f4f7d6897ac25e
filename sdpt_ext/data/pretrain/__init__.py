"""Pre-training data of the nano model."""

from sdpt_ext.data.pretrain.examples import Photographs, ShapeScenes
from sdpt_ext.data.pretrain.stream import PretrainStream, StreamOptions
from sdpt_ext.data.pretrain.validation import LabelledPhotographs

__all__ = ["LabelledPhotographs", "Photographs", "PretrainStream", "ShapeScenes", "StreamOptions"]
