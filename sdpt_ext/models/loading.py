"""Models and their processors by name: the shipped nano, official GLIP sizes, folders and hub repositories."""

from __future__ import annotations

from pathlib import Path

from sdpt_ext.assets import ASSETS

from .glip import GlipConfig, GlipForObjectDetection, GlipProcessor

_OFFICIAL = {"glip-tiny": GlipConfig.tiny, "glip-large": GlipConfig.large}


def load_model(
    name: str | Path, checkpoint: str | Path | None = None
) -> tuple[GlipForObjectDetection, GlipProcessor]:
    """Load a detector in evaluation mode together with its processor.

    Args:
        name: "nano" (shipped), "glip-tiny" or "glip-large" (need ``checkpoint``), a folder that ``save_pretrained``
            wrote, or a repository of the Hugging Face hub.
        checkpoint: an official GLIP checkpoint (.pth) for "glip-tiny" and "glip-large".

    Raises:
        ValueError: ``checkpoint`` is missing where it is needed, or given where it is not.
        OSError: the folder or repository cannot be read.
    """
    name = str(name)
    if name in _OFFICIAL:
        if checkpoint is None:
            raise ValueError(
                f"{name} needs its official weights: pass --checkpoint FILE.pth (released by microsoft/GLIP under "
                "the MIT licence)"
            )
        return GlipForObjectDetection.from_official(checkpoint, _OFFICIAL[name]()), GlipProcessor.bert()
    if checkpoint is not None:
        raise ValueError(f"--checkpoint goes with --model {' or '.join(_OFFICIAL)}, not with {name!r}")
    source = str(ASSETS / "nano") if name == "nano" else name
    if "/" not in name and name != "nano" and not Path(name).is_dir():
        raise FileNotFoundError(f"no model {name!r}: choose nano, {', '.join(_OFFICIAL)}, a folder, or a hub repository")
    return GlipForObjectDetection.from_pretrained(source).eval(), GlipProcessor.from_pretrained(source)


__all__ = ["load_model"]
