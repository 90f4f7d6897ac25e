"""Words that name a generated object: its colour, its texture and its shape."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 36, 40),
    "orange": (240, 134, 26),
    "yellow": (240, 216, 44),
    "green": (46, 158, 62),
    "cyan": (44, 196, 204),
    "blue": (38, 76, 208),
    "purple": (124, 48, 168),
    "pink": (240, 128, 176),
    "brown": (124, 76, 38),
    "white": (240, 240, 240),
    "gray": (132, 132, 136),
    "black": (24, 24, 26),
}

TEXTURES = ("solid", "striped", "dotted", "checkered", "speckled", "outlined", "faded", "grid")

SHAPES = (
    "circle",
    "oval",
    "ring",
    "semicircle",
    "crescent",
    "drop",
    "heart",
    "flower",
    "gear",
    "cloud",
    "square",
    "rectangle",
    "diamond",
    "triangle",
    "trapezoid",
    "pentagon",
    "hexagon",
    "star",
    "cross",
    "arrow",
    "bolt",
    "hourglass",
    "chevron",
    "house",
)


@dataclass(frozen=True)
class ObjectName:
    """What a name says about an object; an unsaid property is None and matches anything."""

    shape: str
    colour: str | None = None
    texture: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.colour, self.texture, self.shape) if word)

    def describes(self, other: ObjectName) -> bool:
        """Whether every property said here is the one of the fully described object ``other``."""
        return (
            self.shape == other.shape and self.colour in (None, other.colour) and self.texture in (None, other.texture)
        )


def words() -> list[str]:
    """Every word that the names of generated objects are made of."""
    return [*COLOURS, *TEXTURES, *SHAPES]
