"""The generated detection tasks: which objects count under which names, and how the pictures look."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sdpt_ext.data.shapes import appearance
from sdpt_ext.data.shapes.scenes import Appearance, SceneOptions, complete, random_object
from sdpt_ext.data.shapes.vocabulary import ObjectName


@dataclass(frozen=True)
class Task:
    """A detection task on generated scenes.

    Attributes:
        description: one line for users.
        classes: class name -> what an object must be to belong to it.
        options: number, size and appearance of the objects.
        distractors: share of objects that belong to no class.
    """

    description: str
    classes: dict[str, ObjectName]
    options: SceneOptions = field(default_factory=SceneOptions)
    distractors: float = 0.25

    def choose(self, rng: np.random.Generator) -> ObjectName:
        """A fully described object of a random class, or a distractor."""
        wanted = list(self.classes.values())
        if rng.random() >= self.distractors:
            return complete(wanted[rng.integers(len(wanted))], rng)
        while self.label_of(other := random_object(rng)) is not None:
            pass
        return other

    def label_of(self, name: ObjectName) -> int | None:
        """1-based label of a fully described object, None if it belongs to no class."""
        labels = (label for label, wanted in enumerate(self.classes.values(), start=1) if wanted.describes(name))
        return next(labels, None)


_OBJECTS = (
    ObjectName("star"),
    ObjectName("ring"),
    ObjectName("gear"),
    ObjectName("heart"),
    ObjectName("arrow"),
    ObjectName("drop"),
    ObjectName("cross"),
    ObjectName("flower"),
)
_KNOWN = {str(name): name for name in _OBJECTS}
_RENAMED = dict(zip(("zorp", "quib", "flam", "nerk", "dask", "vulp", "trond", "miff"), _OBJECTS, strict=True))
_COLOURED = (
    ObjectName("star", "red"),
    ObjectName("star", "blue"),
    ObjectName("circle", "green"),
    ObjectName("circle", "yellow"),
    ObjectName("triangle", "purple"),
    ObjectName("ring", None, "striped"),
    ObjectName("square", "orange", "dotted"),
    ObjectName("heart", None, "checkered"),
)


def _looks(change: Appearance, noise: float = 4.0) -> SceneOptions:
    return SceneOptions(noise=noise, appearance=change)


TASKS: dict[str, Task] = {
    "base": Task("shapes as in pre-training", _KNOWN),
    "coloured": Task(
        "shapes told apart by colour and texture, as in pre-training", {str(name): name for name in _COLOURED}
    ),
    "night": Task("known shapes in the dark, lit by one lamp", _KNOWN, _looks(appearance.night, noise=0)),
    "thermal": Task("known shapes in the false colours of a heat camera", _KNOWN, _looks(appearance.thermal)),
    "sketch": Task("known shapes drawn with a pencil", _KNOWN, _looks(appearance.sketch)),
    "fog": Task("known shapes in thick fog", _KNOWN, _looks(appearance.fog)),
    "negative": Task(
        "coloured shapes on a film negative", {str(name): name for name in _COLOURED}, _looks(appearance.negative)
    ),
    "novel_pair": Task(
        "two shapes, large and few, under names that no one has heard, in the dark",
        {"zorp": ObjectName("star"), "quib": ObjectName("ring")},
        SceneOptions(objects=(1, 5), sizes=(32.0, 150.0), noise=0, appearance=appearance.night),
    ),
    "novel": Task("known shapes under names that no one has heard", _RENAMED),
    "novel_night": Task("known shapes under new names, in the dark", _RENAMED, _looks(appearance.night, noise=0)),
    "novel_thermal": Task("known shapes under new names, in false colours", _RENAMED, _looks(appearance.thermal)),
}
