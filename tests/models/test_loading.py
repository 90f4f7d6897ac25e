"""Saving, loading and naming of whole detectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from sdpt_ext.models import GlipConfig, GlipForObjectDetection, GlipProcessor
from sdpt_ext.models.loading import load_model

from ..tuners.test_sdpt import batch, outputs


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GlipForObjectDetection(GlipConfig.nano()).save_pretrained(folder)
    GlipProcessor.nano().save_pretrained(folder)
    return folder


def test_round_trip(saved: Path) -> None:
    torch.manual_seed(0)
    model = GlipForObjectDetection(GlipConfig.nano()).eval()
    loaded, processor = load_model(saved)
    assert not loaded.training
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-5, atol=1e-5)
    assert processor.config == GlipProcessor.nano().config


def test_shipped_nano_detects() -> None:
    model, processor = load_model("nano")
    assert 3e6 < sum(parameter.numel() for parameter in model.parameters()) < 5e6
    assert model.dtype == torch.float32
    inputs = processor(images=torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(), text=["red star", "circle"])
    with torch.no_grad():
        output = model(**{key: inputs[key] for key in ("pixel_values", "input_ids", "attention_mask")})
    assert output.logits.shape[2] == inputs["input_ids"].shape[1]
    assert torch.isfinite(output.logits).all()


def test_losses_sum_to_the_loss_and_negatives_count(saved: Path) -> None:
    model, _ = load_model(saved)
    output = model(**batch())
    assert set(output.loss_dict) == {"loss_reg", "loss_centerness", "loss_dot_product_token"}
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
    assert all(value > 0 for value in output.loss_dict.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 64, 64)}, "pixel_values"),
        ({"attention_mask": torch.ones(2, 5)}, "attention_mask"),
        ({"labels": []}, "one dictionary per image"),
    ],
)
def test_bad_inputs_are_named(saved: Path, change: dict[str, object], message: str) -> None:
    model, _ = load_model(saved)
    with pytest.raises(ValueError, match=message):
        model(**{**batch(), **change})


def test_damaged_and_misshaped_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["head.bias_lang"] = torch.zeros(3)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not fit"):
        load_model(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_model(tmp_path)


def test_missing_weights_are_listed(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("head.bias0")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys: head\.bias0"):
        load_model(tmp_path)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert', not one of sdpt_glip, grounding-dino"):
        load_model(tmp_path)


def test_names_and_checkpoints_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model 'glip-huge'"):
        load_model("glip-huge")
    with pytest.raises(ValueError, match="--checkpoint FILE"):
        load_model("glip-tiny")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_model("glip-tiny", tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="--checkpoint goes with"):
        load_model("nano", tmp_path / "x.pth")


def test_nano_config_folds() -> None:
    config = GlipConfig.nano()
    assert config.fusion_dim // config.fusion_heads == config.hidden_size
    assert json.loads(config.to_json_string())["model_type"] == "sdpt_glip"
