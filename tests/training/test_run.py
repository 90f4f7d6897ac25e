"""Whole runs of a few steps: what they write, how they stop, and that resuming changes nothing."""

from __future__ import annotations

import argparse
import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from sdpt_ext import evaluate
from sdpt_ext.cli import add_model_arguments, load_detector
from sdpt_ext.evaluation.coco import SUMMARY
from sdpt_ext.models.glip import GlipForObjectDetection
from sdpt_ext.models.loading import load_model
from sdpt_ext.training.trainer import DetectionTrainer
from sdpt_ext.tuners import load_adapter

from ..models.test_grounding_dino_processing import save_host

Train = Callable[..., None]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=name)


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Makes a signal arrive during a training step."""

    def arrange(step: int, number: signal.Signals) -> None:
        compute_loss = DetectionTrainer.compute_loss

        def interrupted(self: DetectionTrainer, *args: object, **kwargs: object) -> object:
            if self.state.global_step == step - 1:
                signal.raise_signal(number)
            return compute_loss(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(DetectionTrainer, "compute_loss", interrupted)

    return arrange


def test_a_run_writes_everything(
    train: Train, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--max_steps", 4, "--eval_steps", 2, "--layers", 1)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for part in ("zero_shot", "tuned"):
        assert set(metrics[part]) == {*SUMMARY, "per_class"}
        assert set(metrics[part]["per_class"]) == {"red square", "blue square"}
    assert metrics["trainable_params"] == 10 * 64
    assert metrics["trainable_percent"] == pytest.approx(100 * 640 / metrics["total_params"])
    assert all(metrics[name] > 0 for name in ("peak_memory_mb", "seconds", "train_seconds", "images_per_second"))
    assert isinstance(json.loads((tmp_path / "predictions_test.json").read_text()), list)
    for picture in ("curves.png", "examples.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("runs/*/events.out.tfevents.*"))
    assert list(weights(tmp_path)) == ["head.dyhead_tower.3.b_attn.prompt.prototype_tokens"]
    load_adapter(load_model(model_folder)[0], tmp_path)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("zero-shot", "tuned", "trainable parameters  640 of", "peak memory"))


def test_gates_have_a_learning_rate_of_their_own(train: Train, tmp_path: Path) -> None:
    rates = ["--learning_rate=0.1", "--gate_learning_rate=0.003", "--lr_scheduler_type=constant", "--warmup_steps=0"]
    train(tmp_path, "--max_steps", 1, "--eval_strategy", "no", "--gate", "zero", *rates)
    # The first step of Adam is as long as the learning rate in every coordinate, whatever its gradient.
    opened = [value for name, value in weights(tmp_path).items() if name.endswith("gate")]
    assert len(opened) == 2
    torch.testing.assert_close(torch.cat(opened).abs(), torch.full((4,), 0.003), rtol=1e-3, atol=0)


def test_classes_in_several_captions(train: Train, tmp_path: Path, data_folder: Path, model_folder: Path) -> None:
    train(tmp_path / "run", "--max_steps", 2, "--classes_per_caption", 1)
    tuned = json.loads((tmp_path / "run" / "metrics.json").read_text())["tuned"]
    flags = {"--model": model_folder, "--adapter": tmp_path / "run", "--data": data_folder, "--device": "cpu"}
    options = [str(part) for flag in flags.items() for part in flag]
    evaluate.main([*options, "--output_dir", str(tmp_path / "again"), "--classes_per_caption", "1"])
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert {name: again[name] for name in tuned} == tuned


def test_the_adapter_keeps_the_image_size_it_was_tuned_at(train: Train, tmp_path: Path, model_folder: Path) -> None:
    train(tmp_path, "--max_steps", 1, "--image_size", 96)
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    flags = ["--model", str(model_folder), "--device", "cpu"]
    sizes = [
        load_detector(parser.parse_args([*flags, *adapter]))[1].config.shortest_edge
        for adapter in ([], ["--adapter", str(tmp_path)])
    ]
    assert sizes == [64, 96]


def test_the_written_config_reproduces_the_run(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "a", "--max_steps", 2, "--num_tokens", 3, "--seed", 5)
    recipe = tmp_path / "a" / "config.yaml"
    assert {"seed", "learning_rate", "method"} <= set(yaml.safe_load(recipe.read_text()))
    from sdpt_ext.train import main

    main([str(recipe), "--output_dir", str(tmp_path / "b")])
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_checkpoint_holds_the_adapter_and_not_the_host(train: Train, tmp_path: Path) -> None:
    train(tmp_path, "--max_steps", 2, "--eval_steps", 1)
    for checkpoint in (tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        names = {file.name for file in checkpoint.iterdir()}
        assert names == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "trainer_state.json",
        }
        assert all(".prompt." in name for name in weights(checkpoint))


def test_only_the_prompts_change(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[GlipForObjectDetection] = []
    bare = DetectionTrainer._bare_model

    def remember(self: DetectionTrainer) -> GlipForObjectDetection:
        trained[:] = [bare(self)]
        return trained[0]

    monkeypatch.setattr(DetectionTrainer, "_bare_model", remember)
    train(tmp_path, "--max_steps", 2, "--eval_strategy", "no")
    host = json.loads((tmp_path / "adapter_config.json").read_text())
    model = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]
    before = load_model(model)[0].state_dict()
    after = {name: value for name, value in trained[0].state_dict().items() if ".prompt." not in name}
    assert host["method"] == "sdpt"
    assert_equal(before, after)


@pytest.mark.parametrize("method", ["full", "linear_probe", "bitfit"])
def test_other_methods_save_a_whole_model(train: Train, tmp_path: Path, method: str) -> None:
    train(tmp_path, "--max_steps", 2, "--eval_strategy", "no", "--method", method)
    model, _ = load_model(tmp_path / "model")
    saved = load_file(tmp_path / "checkpoint-2" / "trained_weights.safetensors")
    assert_equal({name: value for name, value in model.state_dict().items() if name in saved}, saved)
    frozen = len(dict(model.named_parameters())) - len(saved)
    assert frozen == 2 if method == "full" else frozen > 10
    assert not (tmp_path / "adapter_config.json").exists()


def test_method_none_only_measures(train: Train, tmp_path: Path) -> None:
    train(tmp_path, "--method", "none")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["tuned"] == metrics["zero_shot"]
    assert metrics["trainable_params"] == 0


@pytest.mark.parametrize(
    ("stop_at", "number", "flags"),
    [
        (4, signal.SIGTERM, ("--host_dropout",)),
        (3, signal.SIGINT, ("--method", "full")),  # 3 steps are one epoch
        (4, signal.SIGTERM, ("--method", "lora")),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_result(
    train: Train,
    tmp_path: Path,
    signal_at: Callable[[int, signal.Signals], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop_at: int,
    number: signal.Signals,
    flags: tuple[str, ...],
) -> None:
    flags = ("--max_steps", "8", "--eval_steps", "2", "--save_total_limit", "9", *flags)
    train(tmp_path / "whole", *flags)
    with monkeypatch.context():
        signal_at(stop_at, number)
        handler = signal.getsignal(number)
        with pytest.raises(SystemExit) as stop:
            train(tmp_path / "parts", *flags)
        monkeypatch.undo()
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is handler
    assert "--resume_from_checkpoint auto" in capsys.readouterr().out
    assert (tmp_path / "parts" / f"checkpoint-{stop_at}" / "trainer_state.json").exists()
    assert not (tmp_path / "parts" / f"checkpoint-{stop_at + 1}").exists()
    train(tmp_path / "parts", *flags, "--resume_from_checkpoint", "auto")
    for step in (stop_at // 2 * 2 + 2, 8):
        _same_checkpoint(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "parts" / f"checkpoint-{step}")


def _same_checkpoint(whole: Path, parts: Path) -> None:
    (name,) = [file.name for file in whole.glob("*.safetensors")]
    assert_equal(load_file(whole / name), load_file(parts / name))
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, parts)]
    losses = [[(entry["step"], entry["loss"]) for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]


def test_resuming_a_finished_run_trains_no_further(train: Train, tmp_path: Path) -> None:
    train(tmp_path, "--max_steps", 2)
    before = weights(tmp_path)
    train(tmp_path, "--max_steps", 2, "--resume_from_checkpoint", "auto")
    assert_equal(before, weights(tmp_path))
    assert not (tmp_path / "checkpoint-3").exists()


def test_a_second_run_does_not_touch_the_first(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--max_steps", 1, "--eval_strategy", "no")
    before = weights(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, "--max_steps", 1, "--seed", 9)
    assert stop.value.code == 2
    assert "already holds a run" in capsys.readouterr().err
    assert_equal(before, weights(tmp_path))
    train(tmp_path, "--max_steps", 1, "--seed", 9, "--eval_strategy", "no", "--overwrite")
    assert any((before[name] != value).any() for name, value in weights(tmp_path).items())


def test_a_full_disk_leaves_no_broken_checkpoint(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, "--max_steps", 2, "--eval_strategy", "no", "--save_steps", 1, "--report_to", "none")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "checkpoint-1") in message
    assert "free some space" in message
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_stops_the_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, "--max_steps", 4, "--learning_rate", "1e30", "--max_grad_norm", 0, "--method", "full")
    assert stop.value.code == 2
    assert "lower --learning_rate" in capsys.readouterr().err


def measure_again(model: Path, adapter: Path, data: Path) -> float:
    """AP that the evaluation command gives a run's adapter."""
    folder = adapter.with_name("again")
    flags = {"model": model, "adapter": adapter, "data": data, "output_dir": folder}
    evaluate.main([f"--{name}={value}" for name, value in flags.items()])
    return json.loads((folder / "metrics.json").read_text())["AP"]


@pytest.mark.parametrize("method", ["upt", "coop", "adapter", "lora"])
def test_other_methods_make_an_adapter(
    train: Train, tmp_path: Path, model_folder: Path, data_folder: Path, method: str
) -> None:
    output = tmp_path / "run"
    train(output, "--method", method, "--rank", 2, "--num_tokens", 3, "--max_steps", 3, "--eval_steps", 2)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["trainable_params"] == sum(tensor.numel() for tensor in weights(output).values())
    assert measure_again(model_folder, output, data_folder) == pytest.approx(metrics["tuned"]["AP"], abs=1e-6)


def test_grounding_dino_is_tuned_and_measured_as_glip_is(
    train: Train, tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host, output = save_host(tmp_path / "host"), tmp_path / "run"
    flags = ("--max_steps", 3, "--eval_steps", 2, "--gate", "zero", "--num_tokens", 2)
    train(output, "--model", host, *flags)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["trainable_params"] == 2 * (2 * 48 + 2)
    assert "AP50" in metrics["tuned"]
    trained = weights(output)
    assert all(tensor.abs().sum() > 0 for name, tensor in trained.items() if name.endswith("gate"))

    assert measure_again(host, output, data_folder) == pytest.approx(metrics["tuned"]["AP"], abs=1e-6)
    for flags, message in (
        (("--cache_features", tmp_path / "cache"), "needs a GLIP"),
        (("--method", "lora"), "choose one of sdpt, vpt, maple, upt, none"),
    ):
        with pytest.raises(SystemExit):
            train(tmp_path / "refused", "--model", host, "--max_steps", 1, *flags)
        assert message in capsys.readouterr().err.splitlines()[-1]
