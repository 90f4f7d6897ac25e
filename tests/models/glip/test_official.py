"""Official GLIP checkpoints: names and shapes, strict conversion, and errors that say what to do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdpt_ext.models.glip.configuration import GlipConfig
from sdpt_ext.models.glip.modeling import GlipForObjectDetection
from sdpt_ext.models.glip.official import (
    convert_official_state_dict,
    official_config,
    official_shapes,
    read_official_checkpoint,
)

GOLDEN = Path(__file__).parents[2] / "golden"
PATCH = "backbone.body.patch_embed.proj.weight"


def official_keys(size: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((GOLDEN / f"keys_glip_{size}.json").read_text()).items()}


@pytest.fixture(scope="module")
def nano() -> GlipConfig:
    return GlipConfig.nano()


@pytest.fixture
def weights(nano: GlipConfig) -> dict[str, Tensor]:
    """Random official weights of a nano GLIP, without the constant buffers."""
    torch.manual_seed(0)
    shapes = official_shapes(nano)
    return {
        key: torch.randn(shape)
        for key, shape in shapes.items()
        if not key.endswith("relative_position_index") and "cell_anchors" not in key
    }


@pytest.mark.parametrize(("size", "config"), [("t", GlipConfig.tiny()), ("l", GlipConfig.large())])
def test_names_and_shapes_are_the_released_ones(size: str, config: GlipConfig) -> None:
    assert official_shapes(config) == official_keys(size)


def test_conversion_fills_the_whole_model(nano: GlipConfig, weights: dict[str, Tensor]) -> None:
    model = GlipForObjectDetection(nano)
    model.load_official_state_dict(weights)
    block = model.backbone.body.swin.encoder.layers[1].blocks[0].attention
    qkv = weights["backbone.body.layers.1.blocks.0.attn.qkv.weight"]
    assert torch.equal(torch.cat([block.q_proj.weight, block.k_proj.weight, block.v_proj.weight]), qkv)
    assert torch.equal(model.backbone.body.hidden_states_norms["stage3"].weight, weights["backbone.body.norm2.weight"])
    assert torch.equal(model.head.scales[4].scale, weights["rpn.head.scales.4.scale"])
    assert model.state_dict().keys() == convert_official_state_dict(weights, nano).keys()


def test_wrapper_prefix_and_constant_buffers_are_accepted(nano: GlipConfig, weights: dict[str, Tensor]) -> None:
    full = dict(weights)
    full["language_backbone.body.model.embeddings.position_ids"] = torch.arange(512)[None]
    full["rpn.anchor_generator.cell_anchors.0"] = torch.tensor([[-12.0, -12.0, 19.0, 19.0]])
    wrapped = {"model": {f"module.{key}": value for key, value in full.items()}, "iteration": 7}
    plain, converted = convert_official_state_dict(weights, nano), convert_official_state_dict(wrapped, nano)
    assert plain.keys() == converted.keys()
    assert all(torch.equal(plain[key], converted[key]) for key in plain)


def test_every_disagreement_is_listed(nano: GlipConfig, weights: dict[str, Tensor]) -> None:
    missing = [key for key in weights if "dyhead_tower.6." in key]
    for key in missing:
        del weights[key]
    weights["rpn.head.extra"] = torch.zeros(1)
    weights["rpn.head.bias0"] = torch.zeros(2)
    weights["rpn.head.log_scale"] = 1.0
    with pytest.raises(ValueError) as error:
        convert_official_state_dict(weights, nano)
    lines = str(error.value).splitlines()
    assert f"{len(missing)} missing keys:" in lines
    assert all(f"  {key}" in lines for key in missing)
    assert lines[lines.index("1 unexpected key:") + 1] == "  rpn.head.extra"
    assert "2 mis-shaped keys:" in lines
    assert "  rpn.head.bias0: checkpoint (2,), model (1,)" in lines
    assert "  rpn.head.log_scale: checkpoint a float, model (1,)" in lines


def test_a_checkpoint_without_fusion_is_refused(nano: GlipConfig, weights: dict[str, Tensor]) -> None:
    unfused = {key: value for key, value in weights.items() if ".b_attn." not in key}
    with pytest.raises(ValueError, match=r"no fusion layers .*GLIP-T \(A\)"):
        convert_official_state_dict(unfused, nano)


def test_another_architecture_and_released_prompts_are_recognised(nano: GlipConfig, weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="another architecture"):
        convert_official_state_dict({"conv1.weight": torch.zeros(1)}, nano)
    weights["rpn.head.dyhead_tower.0.b_attn.attn.cpt_input"] = torch.zeros(1, 10, 512)
    with pytest.raises(ValueError, match="prompts of the released SDPT code"):
        convert_official_state_dict(weights, nano)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rpn.anchor_generator.cell_anchors.1", torch.tensor([[-56.0, -56.0, 71.0, 71.0]]), r"\[\[-24.0, -24.0"),
        (
            "backbone.body.layers.0.blocks.0.attn.relative_position_index",
            torch.zeros(64, 64, dtype=torch.int64),
            "not the index of this window size",
        ),
    ],
)
def test_constants_of_another_configuration_are_refused(
    nano: GlipConfig, weights: dict[str, Tensor], key: str, value: Tensor, message: str
) -> None:
    weights[key] = value
    with pytest.raises(ValueError, match=f"(?s){key}.*{message}"):
        convert_official_state_dict(weights, nano)


def test_released_size_is_recognised_by_the_patch_embedding() -> None:
    assert official_config({"model": {f"module.{PATCH}": torch.zeros(96, 3, 4, 4)}}).num_head_layers == 6
    assert official_config({PATCH: torch.zeros(192, 3, 4, 4)}).num_head_layers == 8
    with pytest.raises(ValueError, match="width 32"):
        official_config({PATCH: torch.zeros(32, 3, 4, 4)})
    with pytest.raises(ValueError, match="no GLIP checkpoint"):
        official_config({"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("zipped", [True, False])
def test_reading_both_formats_of_torch(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "glip.pth"
    torch.save({"model": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_official_checkpoint(path)["model"]["a"], torch.ones(2))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pth"):
        read_official_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_named(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "glip.pth"
    torch.save({"model": {"a": torch.randn(1000)}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"glip\.pth is damaged or incomplete \(\d+ bytes\): download it again"):
        read_official_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a PyTorch checkpoint"),
        (b"<html>Not found</html>", "is not a PyTorch checkpoint"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "glip.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"glip\.pth {message}"):
        read_official_checkpoint(path)


def test_a_tensor_alone_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "glip.pth"
    torch.save(torch.ones(2), path)
    with pytest.raises(ValueError, match=r"glip\.pth holds a Tensor"):
        read_official_checkpoint(path)


class Trap:
    """An object whose loading runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("code from the checkpoint was run",)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "glip.pth"
    torch.save({"model": {}, "args": Trap()}, path)
    with pytest.raises(ValueError, match="holds objects other than tensors"):
        read_official_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ValueError, match=r"glip\.pth"):
        read_official_checkpoint(path)
