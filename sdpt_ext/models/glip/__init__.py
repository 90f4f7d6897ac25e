"""GLIP (Li et al., CVPR 2022): configuration, model, processor and the maths of its detections."""

from .configuration import GlipConfig
from .modeling import GlipForObjectDetection, GlipOutput
from .processing import GlipProcessor

__all__ = ["GlipConfig", "GlipForObjectDetection", "GlipOutput", "GlipProcessor"]
