"""Detectors that can be tuned."""

from .glip import GlipConfig, GlipForObjectDetection, GlipOutput, GlipProcessor

__all__ = ["GlipConfig", "GlipForObjectDetection", "GlipOutput", "GlipProcessor"]
