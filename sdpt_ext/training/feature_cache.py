"""Pyramids of a frozen backbone, computed once per picture.

A method that leaves the backbone alone sees the same pyramid whenever the same pixels come back: a validation image at
every evaluation, a training image at the same scale and flip. Entries are found by the pixels themselves (padding
included) and by the backbone's weights, so a hit is what the backbone would compute again, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdpt_ext.data.atomic import replacing


class FeatureCache:
    """A bounded store of pyramids in memory, or in a folder that later runs share.

    Args:
        limit_mb: no further pyramid is stored once this size is reached.
        folder: where the pyramids are kept; None for memory.

    Attributes:
        hits, misses: look-ups so far.
    """

    def __init__(self, limit_mb: int, folder: Path | None = None) -> None:
        self.folder = folder
        self.hits = self.misses = 0
        self._memory: dict[str, list[Tensor]] = {}
        self._free = limit_mb * 2**20
        if folder is not None:
            self._free -= sum(file.stat().st_size for file in folder.rglob("*.safetensors"))

    def get(self, key: str) -> list[Tensor] | None:
        """The levels stored under a key, or None.

        Raises:
            ValueError: a damaged file.
        """
        levels = self._memory.get(key) if self.folder is None else _read(_file(self.folder, key))
        self.hits += levels is not None
        self.misses += levels is None
        return levels

    def put(self, key: str, levels: list[Tensor]) -> None:
        """Keep the levels if there is room."""
        size = sum(level.nbytes for level in levels)
        if size > self._free:
            return
        self._free -= size
        levels = [level.detach().cpu() for level in levels]
        if self.folder is None:
            self._memory[key] = levels
            return
        with replacing(_file(self.folder, key)) as temporary:
            save_file({str(number): level.contiguous() for number, level in enumerate(levels)}, temporary)


def _file(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def _read(file: Path) -> list[Tensor] | None:
    if not file.is_file():
        return None
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and it will be computed again") from error
    return [tensors[str(number)] for number in range(len(tensors))]


@contextmanager
def cached_backbone(backbone: nn.Module, cache: FeatureCache, while_training: bool = True) -> Iterator[None]:
    """Within the context the frozen `backbone` (B, 3, H, W) -> levels looks its output up first.

    Args:
        while_training: whether to also keep what is computed with gradients enabled; else only evaluations are kept.

    Raises:
        ValueError: some of its parameters train, so its output changes.
    """
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ValueError("features can only be cached while the backbone is frozen: this method trains parts of it")
    compute, weights = backbone.forward, fingerprint(backbone)

    def look_up(pixel_values: Tensor) -> list[Tensor]:
        if backbone.training:
            # Dropout of the host is on: no two outputs are alike.
            return compute(pixel_values)
        keep = while_training or not torch.is_grad_enabled()
        pyramids = [_pyramid(image, weights, keep) for image in pixel_values.split(1)]
        return [torch.cat(level) for level in zip(*pyramids, strict=True)]

    def _pyramid(image: Tensor, weights: str, keep: bool) -> list[Tensor]:
        key = _key(image, weights)
        levels = cache.get(key)
        if levels is None:
            # One image at a time: what is stored must not depend on the batch that it came in.
            levels = compute(image)
            if keep:
                cache.put(key, levels)
        return [level.to(image.device) for level in levels]

    backbone.forward = look_up
    try:
        yield
    finally:
        del backbone.forward


def fingerprint(module: nn.Module) -> str:
    """A digest of all weights of a module."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _key(image: Tensor, weights: str) -> str:
    kind = image.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image.dtype
    digest = hashlib.sha256(f"{weights} {tuple(image.shape)} {image.dtype} {precision}".encode())
    digest.update(_bytes(image))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
