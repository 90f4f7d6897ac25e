"""Recipes and flags: precedence, types, and mistakes that are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from sdpt_ext.training.defaults import BY_METHOD, FOR_NANO, SHARED, defaults_for
from sdpt_ext.training.recipe import ArgumentError, flag_names, parse_arguments
from sdpt_ext.tuners import METHODS, BottleneckConfig, CoOpConfig, LoRAConfig, PromptConfig, TuningConfig
from sdpt_ext.tuners.adapter import ADAPTER_METHODS


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return str(path)


def test_without_flags_the_defaults_table_decides() -> None:
    arguments = parse_arguments([])
    assert (arguments.run.model, arguments.run.method, arguments.run.num_tokens) == ("nano", "sdpt", 10)
    assert arguments.run.data.startswith("shapes:")
    for name, value in defaults_for("sdpt", arguments.run.data, "nano").items():
        owner = arguments.training if hasattr(arguments.training, name) else arguments.run
        assert getattr(owner, name) == value, name


def test_defaults_name_real_flags() -> None:
    rows = [SHARED, *BY_METHOD.values(), *FOR_NANO.values()]
    assert {name for row in rows for name in row} <= set(flag_names())


def test_method_and_model_choose_the_learning_rate() -> None:
    rates = [
        parse_arguments(["--method", method, "--model", model]).training.learning_rate
        for method in ("sdpt", "full")
        for model in ("nano", "some/detector")
    ]
    tables = [table[method]["learning_rate"] for method in ("sdpt", "full") for table in (FOR_NANO, BY_METHOD)]
    assert rates == tables
    assert len(set(rates)) == len(rates)


@pytest.mark.parametrize(
    ("flags", "gate"), [([], "zero"), (["--gate", "none"], None), (["--model", "some/detector"], None)]
)
def test_prompts_of_nano_are_gated_unless_a_flag_says_no(flags: list[str], gate: str | None) -> None:
    assert parse_arguments(flags).run.tuning_config().gate == gate


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("vpt", PromptConfig(4, gate="zero", host_dropout=True)),
        ("text_prompt", TuningConfig(host_dropout=True)),
        ("coop", CoOpConfig(4, host_dropout=True)),
        ("adapter", BottleneckConfig(5, host_dropout=True)),
        ("lora", LoRAConfig(5, alpha=10, host_dropout=True)),
    ],
)
def test_flags_become_the_options_of_the_method(method: str, config: object) -> None:
    flags = ["--method", method, "--num_tokens", "4", "--rank", "5", "--gate", "zero", "--host_dropout"]
    assert parse_arguments(flags).run.tuning_config() == config


@pytest.mark.parametrize(
    ("method", "unused"),
    [
        ("sdpt", ["--rank"]),
        ("vpt", ["--text_prompts", "--init", "--rank"]),
        ("lora", ["--num_tokens", "--text_prompts", "--layers", "--init", "--gate", "--gate_learning_rate"]),
        ("full", ["--num_tokens", "--text_prompts", "--layers", "--init", "--gate", "--gate_learning_rate", "--rank"]),
    ],
)
def test_flags_that_say_nothing_to_the_method_are_named(method: str, unused: list[str]) -> None:
    values = {"num_tokens": 4, "text_prompts": "masked", "layers": 1, "init": "normal", "gate": "zero", "rank": 5}
    flags = [f"--{name}={value}" for name, value in values.items()] + ["--gate_learning_rate=0.1"]
    assert sorted(parse_arguments(["--method", method, *flags]).run.without_effect()) == sorted(unused)
    assert parse_arguments(["--method", method, "--num_tokens", "10"]).run.without_effect() == []


def test_the_rate_of_gates_says_nothing_without_gates() -> None:
    flags = ["--gate", "none", "--gate_learning_rate", "0.1"]
    assert parse_arguments(flags).run.without_effect() == ["--gate_learning_rate"]


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_options_fit_the_method(method: str) -> None:
    config = parse_arguments(["--method", method]).run.tuning_config()
    assert type(config) is ADAPTER_METHODS[method].config


def test_every_method_that_trains_has_learning_rates() -> None:
    assert BY_METHOD.keys() == FOR_NANO.keys() == METHODS.keys() - {"none"}


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json"])
def test_flags_override_the_recipe_and_the_recipe_the_defaults(tmp_path: Path, name: str) -> None:
    recipe = write(tmp_path / name, {"method": "full", "learning_rate": "2e-3", "num_tokens": 5, "layers": [0, 2]})
    arguments = parse_arguments([recipe, "--num_tokens", "7", "--bf16"])
    assert arguments.run.method == "full"
    assert arguments.training.learning_rate == 2e-3
    assert (arguments.run.num_tokens, arguments.run.layers) == (7, [0, 2])
    assert arguments.training.bf16


def test_yaml_scalars_take_the_type_of_their_flag(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "image_size: 320\nlearning_rate: 1e-3\nmax_steps: -1\nnum_train_epochs: 2\nfp16: no\nsave_total_limit: null\n"
    )
    arguments = parse_arguments([str(path)])
    training = arguments.training
    assert arguments.run.image_size == "320"
    assert training.learning_rate == 1e-3  # PyYAML reads 1e-3 as a string
    assert (training.max_steps, training.num_train_epochs) == (-1, 2.0)
    assert training.fp16 is False
    assert training.save_total_limit is None


def test_lists_and_mappings_pass_through_a_recipe(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", {"lr_scheduler_kwargs": {"num_cycles": 0.4}, "report_to": []})
    training = parse_arguments([recipe]).training
    assert training.lr_scheduler_kwargs == {"num_cycles": 0.4}
    assert training.report_to == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shot", "4"], "unknown flag --shot (did you mean --shots?)"),
        (["--learning-rates=1"], "did you mean --learning_rate?"),
        (["--num_tokens", "ten"], "invalid int value: 'ten'"),
        (["--method", "lore"], "invalid choice: 'lore'"),
        (["--num_tokens", "0"], "--num_tokens is 0"),
        (["--shots", "0"], "--shots is 0"),
        (["--image_size", "large"], "--image_size is large; it must be auto or a number of pixels"),
        (["--repeat_threshold", "2"], "--repeat_threshold is 2; it must lie between 0 and 1"),
        (["--image_size", "16"], "--image_size is 16"),
        (["--text_prompts", "hidden"], "invalid choice"),
        (["--eval_strategy", "sometimes"], "sometimes"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments(flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_token": 3}, "unknown key num_token (did you mean num_tokens?)"),
        ({"num_tokens": "many"}, "invalid int value: 'many'"),
        (["method"], "a recipe is a mapping"),
        ({"recipe": "other.yaml"}, "unknown key recipe"),
    ],
)
def test_wrong_recipes_are_named_with_their_file(tmp_path: Path, content: object, message: str) -> None:
    recipe = write(tmp_path / "mine.yaml", content)
    with pytest.raises(ArgumentError) as error:
        parse_arguments([recipe])
    assert recipe in str(error.value)
    assert message in str(error.value)


def test_a_recipe_that_is_no_yaml_or_is_missing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("method: [sdpt")
    with pytest.raises(ArgumentError, match=r"broken\.yaml: not readable as YAML"):
        parse_arguments([str(broken)])
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        parse_arguments([str(tmp_path / "absent.yaml")])


def test_saving_follows_evaluation_unless_told_otherwise() -> None:
    training = parse_arguments(["--eval_steps", "7"]).training
    assert (training.save_steps, training.load_best_model_at_end) == (7, True)
    training = parse_arguments(["--eval_strategy", "epoch"]).training
    assert training.save_strategy == "epoch"
    training = parse_arguments(["--eval_strategy", "no"]).training
    assert (training.save_strategy, training.load_best_model_at_end) == ("steps", False)


def test_epochs_replace_the_default_number_of_steps() -> None:
    training = parse_arguments(["--num_train_epochs", "3"]).training
    assert (training.max_steps, training.num_train_epochs) == (-1, 3.0)


def test_the_resolved_values_are_a_recipe_of_the_same_run(tmp_path: Path) -> None:
    first = parse_arguments(["--method", "full", "--bf16", "--shots", "3", "--max_steps", "20"])
    second = parse_arguments([write(tmp_path / "config.yaml", first.values)])
    assert second.run == first.run
    # Logging folders carry the time at which the arguments were made.
    assert second.training.to_dict() == first.training.to_dict()


def test_help_names_every_flag_and_our_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert all(f"--{name}" in text for name in flag_names())
    assert f"(default: {SHARED['lr_scheduler_type']})" in text
