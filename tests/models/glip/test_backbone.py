"""Feature pyramid, DropBlock and stochastic depth; the numbers themselves are in test_oracle_full.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.swin.modeling_swin import SwinAttention, SwinLayer

from sdpt_ext.models.glip import backbone
from sdpt_ext.models.glip.backbone import DropBlock, FeaturePyramid, GlipBackbone
from sdpt_ext.models.glip.configuration import GlipConfig


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "body", "fpn"),
    [(GlipConfig.tiny(), 27_520_506, 3_295_232), (GlipConfig.large(), 195_200_820, 3_639_296)],
)
def test_parameter_counts(config: GlipConfig, body: int, fpn: int) -> None:
    with torch.device("meta"):
        backbone = GlipBackbone(config)
    assert (count(backbone.body), count(backbone.fpn)) == (body, fpn)


@pytest.mark.parametrize("size", [(64, 96), (250, 331), (33, 40)])
def test_every_level_is_half_the_one_before(size: tuple[int, int]) -> None:
    backbone = GlipBackbone(GlipConfig.nano()).eval()
    with torch.no_grad():
        levels = backbone(torch.randn(2, 3, *size))
    expected = [tuple(-(-side // stride) for side in size) for stride in (8, 16, 32, 64, 128)]
    assert [tuple(level.shape) for level in levels] == [(2, 64, *hw) for hw in expected]


def test_top_levels_come_from_the_p5_output_and_rectified_p6() -> None:
    pyramid = FeaturePyramid((4, 6), first_stage=3, out_channels=8, drop_block=0.0)
    p4, p5, p6, p7 = pyramid([torch.randn(1, 4, 9, 12), torch.randn(1, 6, 5, 6)])
    assert p4.shape == (1, 8, 9, 12)
    torch.testing.assert_close(p6, pyramid.top_blocks["p6"](p5))
    torch.testing.assert_close(p7, pyramid.top_blocks["p7"](p6.relu()))


def test_drop_block_drops_squares_of_all_channels_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    ones = torch.ones(4, 3, 60, 60)
    block = DropBlock(0.3)
    assert block.eval()(ones) is ones
    dropped = block.train()(ones)
    zero = dropped == 0
    assert (zero == zero[:, :1]).all()
    assert 0.2 < zero.float().mean() < 0.3
    assert dropped.mean().item() == pytest.approx(1.0, rel=1e-5)
    # Each dropped position belongs to a 3x3 square of dropped positions, cut only by the border.
    alive = nn.functional.pad((~zero[:, :1]).float(), (1, 1, 1, 1))
    whole = nn.functional.max_pool2d(alive, 3, stride=1) == 0
    covered = nn.functional.max_pool2d(nn.functional.pad(whole.float(), (1, 1, 1, 1)), 3, stride=1) > 0
    assert (covered == zero[:, :1])[..., 2:-2, 2:-2].all()


def test_drop_block_that_drops_everything_stays_finite() -> None:
    assert (DropBlock(9.0).train()(torch.ones(1, 2, 4, 4)) == 0).all()


def test_drop_block_spares_the_coarsest_stage() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid((4, 6), first_stage=3, out_channels=8, drop_block=0.9)
    features = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    training, evaluation = pyramid.train()(features), pyramid.eval()(features)
    assert not torch.equal(training[0], evaluation[0])
    for level in (1, 2, 3):
        torch.testing.assert_close(training[level], evaluation[level], rtol=0, atol=0)


def test_stochastic_depth_drops_both_branches_of_a_block() -> None:
    torch.manual_seed(0)
    config = GlipConfig.nano()
    config.backbone_config.drop_path_rate = 1 - 1e-6
    block = GlipBackbone(config).body.swin.encoder.layers[-1].blocks[-1]
    hidden = torch.randn(2, 64, config.backbone_config.embed_dim * 8)
    assert torch.equal(block.train()(hidden, (8, 8))[0], hidden)
    assert not torch.equal(block.eval()(hidden, (8, 8))[0], hidden)


@pytest.mark.parametrize("grad_enabled", [True, False])
def test_few_tokens_at_a_time_change_nothing(grad_enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GlipBackbone(GlipConfig.nano()).eval().double().requires_grad_(False)
    images = torch.randn(2, 3, 72, 96, dtype=torch.float64)
    monkeypatch.setattr(backbone, "_CPU_TOKENS", 130)
    with torch.set_grad_enabled(grad_enabled):
        parts = model(images)
        for block in model.modules():
            if isinstance(block, SwinLayer):
                block.attention.__class__ = SwinAttention
        monkeypatch.setattr(backbone, "_CPU_TOKENS", 1 << 30)
        for part, whole in zip(parts, model(images), strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-11)


def test_gradients_of_an_image_and_of_a_weight_pass_through_the_blocks() -> None:
    """What overwrites memory at rest must leave it alone here."""
    torch.manual_seed(0)
    model = GlipBackbone(GlipConfig.nano()).eval().double().requires_grad_(False)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    weight = model.body.swin.encoder.layers[0].blocks[1].mlp.fc1.weight.requires_grad_()

    def loss() -> Tensor:
        return sum(level.sin().sum() for level in model(image))

    for tensor, gradient in zip((image, weight), torch.autograd.grad(loss(), (image, weight))):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            tensor += 1e-6 * direction
            up = loss()
            tensor -= 2e-6 * direction
            down = loss()
            tensor += 1e-6 * direction
        assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / 2e-6, rel=1e-5)
