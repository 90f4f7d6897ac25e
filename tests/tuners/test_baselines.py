"""What each method trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdpt_ext.models import GlipConfig, GlipForObjectDetection
from sdpt_ext.tuners import METHODS, apply_method, trainable_parameters


def model_without_weights(config: GlipConfig) -> GlipForObjectDetection:
    with torch.device("meta"):
        return GlipForObjectDetection(config)


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("config", "trainable", "total"),
    [(GlipConfig.tiny(), 231_759_662, 231_780_222), (GlipConfig.large(), 429_199_508, 430_422_384)],
)
def test_full_trains_what_the_official_code_trains(config: GlipConfig, trainable: int, total: int) -> None:
    model = apply_method(model_without_weights(config), "full")
    assert trainable_parameters(model) == (trainable, total)


@pytest.mark.parametrize(
    ("stages", "frozen"), [(0, []), (1, ["embeddings"]), (3, ["embeddings", "layers.0", "layers.1"])]
)
def test_frozen_stages(stages: int, frozen: list[str]) -> None:
    model = apply_method(model_without_weights(GlipConfig.nano(frozen_stages=stages)), "full")
    swin = "backbone.body.swin."
    expected = [name for name, _ in model.named_parameters() if not name.startswith("head.cls_logits.")]
    for part in frozen:
        prefix = f"{swin}embeddings." if part == "embeddings" else f"{swin}encoder.{part}."
        assert any(name.startswith(prefix) for name in expected)
        expected = [name for name in expected if not name.startswith(prefix)]
    assert trained(model) == expected


def test_linear_probe_trains_the_predictors() -> None:
    names = trained(apply_method(model_without_weights(GlipConfig.nano()), "linear_probe"))
    assert {name.split(".")[1] for name in names} == {
        "bbox_pred",
        "centerness",
        "dot_product_projection_text",
        "scales",
        "log_scale",
        "bias_lang",
        "bias0",
    }


def test_bitfit_trains_biases() -> None:
    model = apply_method(model_without_weights(GlipConfig.nano()), "bitfit")
    assert trained(model) and all(name.endswith("bias") for name in trained(model))


def test_none_trains_nothing() -> None:
    assert not trained(apply_method(model_without_weights(GlipConfig.nano()), "none"))


def test_unknown_methods_and_models_are_named() -> None:
    with pytest.raises(ValueError, match=f"'lora2'; choose one of {', '.join(METHODS)}"):
        apply_method(nn.Linear(2, 2), "lora2")
    with pytest.raises(TypeError, match="'full' knows the layers of GlipForObjectDetection alone, not those of Linear"):
        apply_method(nn.Linear(2, 2), "full")


@torch.no_grad()
def test_frozen_stages_drop_no_path() -> None:
    config = GlipConfig.nano(frozen_stages=2)
    config.backbone_config.drop_path_rate = 0.9
    model = apply_method(GlipForObjectDetection(config), "full").train()
    swin, drops = model.backbone.body.swin, []
    for layer in swin.encoder.layers:
        layer.register_forward_hook(lambda *_, layer=layer: drops.append(any(m.training for m in layer.modules())))
    ids = torch.ones(1, 4, dtype=torch.int64)
    model(torch.randn(1, 3, 64, 64), ids, ids)
    assert drops == [False, True, True, True]
    assert not any(module.training for module in swin.embeddings.modules())
    assert swin.encoder.layers[0].blocks[1].drop_path.drop_prob > 0, "or there was nothing to drop"
