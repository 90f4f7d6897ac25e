"""The feature cache: equal results, fewer computations, bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sdpt_ext.training.feature_cache import FeatureCache, cached_backbone, fingerprint


class CountingBackbone(nn.Module):
    """Two levels from one convolution; counts the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3).requires_grad_(False)
        self.seen = 0

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        self.seen += len(pixel_values)
        level = self.conv(pixel_values)
        return [level, level[..., ::2, ::2]]


@pytest.fixture
def backbone() -> CountingBackbone:
    return CountingBackbone().eval()


@pytest.fixture(params=["memory", "folder"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureCache:
    return FeatureCache(1, None if request.param == "memory" else tmp_path)


def test_hits_are_equal_and_cost_nothing(backbone: CountingBackbone, cache: FeatureCache) -> None:
    images = torch.randn(3, 3, 8, 8)
    expected = backbone(images)
    backbone.seen = 0
    with cached_backbone(backbone, cache):
        first = backbone(images)
        again = backbone(images.flip(0))
    assert (backbone.seen, cache.hits, cache.misses) == (3, 3, 3)
    for level, one, two in zip(expected, first, again, strict=True):
        torch.testing.assert_close(one, level)
        assert torch.equal(two, one.flip(0))
    assert "forward" not in vars(backbone)


def test_other_pixels_padding_or_precision_are_other_entries(backbone: CountingBackbone, cache: FeatureCache) -> None:
    image = torch.randn(1, 3, 8, 8)
    with cached_backbone(backbone, cache):
        backbone(image)
        backbone(image + 1e-6)
        backbone(nn.functional.pad(image, (0, 4)))
        with torch.autocast("cpu", torch.bfloat16):
            assert backbone(image)[0].dtype == torch.bfloat16
    assert (cache.hits, cache.misses) == (0, 4)


def test_a_folder_serves_later_runs_but_not_other_weights(tmp_path: Path, backbone: CountingBackbone) -> None:
    image = torch.randn(1, 3, 8, 8)
    with cached_backbone(backbone, FeatureCache(1, tmp_path)):
        backbone(image)
    later = FeatureCache(1, tmp_path)
    with cached_backbone(backbone, later):
        backbone(image)
    other = CountingBackbone().eval()
    with cached_backbone(other, later):
        other(image)
    assert fingerprint(other) != fingerprint(backbone)
    assert (later.hits, later.misses) == (1, 1)


def test_a_full_cache_stores_no_more(tmp_path: Path, backbone: CountingBackbone) -> None:
    images = torch.randn(4, 3, 256, 256)  # 2 * 254**2 * 5 / 4 floats each: one fits into 1 MB
    cache = FeatureCache(1, tmp_path)
    with cached_backbone(backbone, cache):
        backbone(images)
        backbone(images)
    assert (cache.hits, cache.misses) == (1, 7)
    with cached_backbone(backbone, FeatureCache(1, tmp_path)):
        backbone(images + 1)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_what_changes_is_not_cached(backbone: CountingBackbone) -> None:
    cache, image = FeatureCache(1), torch.randn(1, 3, 8, 8)
    with cached_backbone(backbone, cache):
        backbone.train()
        backbone(image)
    assert cache.misses == 0
    backbone.conv.requires_grad_(True)
    with pytest.raises(ValueError, match="frozen"), cached_backbone(backbone, cache):
        pass


def test_training_pictures_are_kept_only_when_asked(backbone: CountingBackbone) -> None:
    cache, image = FeatureCache(1), torch.randn(1, 3, 8, 8)
    with cached_backbone(backbone, cache, while_training=False):
        backbone(image)
        backbone(image)
        with torch.no_grad():
            backbone(image)
            backbone(image)
    assert (cache.hits, cache.misses) == (1, 3)


def test_a_damaged_file_is_named(tmp_path: Path, backbone: CountingBackbone) -> None:
    image = torch.randn(1, 3, 8, 8)
    with cached_backbone(backbone, FeatureCache(1, tmp_path)):
        backbone(image)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=file.name), cached_backbone(backbone, FeatureCache(1, tmp_path)):
        backbone(image)


def test_a_cached_run_gives_the_result_of_an_uncached_one(train: Callable[..., None], tmp_path: Path) -> None:
    for name, cache in (("off", "off"), ("auto", "auto"), ("folder", tmp_path / "features")):
        train(tmp_path / name, "--max_steps", 6, "--eval_steps", 3, "--cache_features", cache)
    expected = load_file(tmp_path / "off" / "adapter_model.safetensors")
    for name in ("auto", "folder"):
        for key, value in load_file(tmp_path / name / "adapter_model.safetensors").items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    assert list((tmp_path / "features").rglob("*.safetensors"))
