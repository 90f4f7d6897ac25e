"""Generated scenes of coloured, textured shapes: detection tasks without any file."""

from sdpt_ext.data.shapes.dataset import ShapesDataset
from sdpt_ext.data.shapes.tasks import TASKS

__all__ = ["TASKS", "ShapesDataset"]
