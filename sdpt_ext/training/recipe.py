"""From a recipe file and command-line flags to the arguments of a run.

A recipe is a flat YAML or JSON mapping whose keys are flag names; its values pass through the very parser that
reads the command line, so both know the same names, types and choices.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser

from sdpt_ext.training import defaults
from sdpt_ext.training.arguments import RunArguments, TrainingFlags

_USAGE = "python -m sdpt_ext.train [RECIPE.yaml|RECIPE.json] [--flag value ...]"
_DESCRIPTION = (
    "Tune a detector, then print zero-shot AP beside tuned AP. Without any flag the shipped nano model learns a "
    "generated task on the CPU in a few minutes."
)


class ArgumentError(ValueError):
    """A flag or recipe entry that no run can use; the message names it and the fix."""


@dataclass
class ResolvedArguments:
    """The arguments of one run and the flat mapping (`values`) that reproduces them as a recipe."""

    run: RunArguments
    training: TrainingFlags
    values: dict[str, Any]


class _FlagParser(HfArgumentParser):
    """HfArgumentParser whose errors can be shown with the recipe's name instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message)


def flag_names() -> list[str]:
    """Every name that a recipe may hold."""
    return [f.name for cls in (RunArguments, TrainingFlags) for f in fields(cls) if f.init]


def build_parser() -> argparse.ArgumentParser:
    """The parser of `sdpt_ext.train`, showing the defaults of this package in its help."""
    groups: list[Any] = [RunArguments, TrainingFlags]
    parser = _FlagParser(groups, usage=_USAGE, description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?", default=None, metavar="RECIPE", help="YAML or JSON mapping of flags.")
    by_method = ", ".join(
        f"{name} {row['learning_rate']:g} (nano {defaults.FOR_NANO[name]['learning_rate']:g})"
        for name, row in defaults.BY_METHOD.items()
    )
    steps = {kind: defaults.defaults_for("", kind)["max_steps"] for kind in defaults.BY_DATA}
    steps |= {f"--method {name}": row["max_steps"] for name, row in defaults.BY_METHOD.items() if "max_steps" in row}
    max_steps = ", ".join(f"{name} {count}" for name, count in steps.items())
    shown = {"learning_rate": by_method, "max_steps": max_steps, "output_dir": "runs/MODEL-DATA-METHOD"}
    parser.set_defaults(**{**defaults.SHARED, **shown})
    return parser


def parse_arguments(argv: Sequence[str]) -> ResolvedArguments:
    """Arguments of a run from its command line.

    Args:
        argv: the flags, optionally preceded by the path of a recipe; flags win over the recipe.

    Raises:
        ArgumentError: an unknown flag or recipe key (with the closest valid one) or a value that does not fit.
        OSError: the recipe cannot be read.
    """
    parser = build_parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    flags = _parse(parser, argv)
    recipe = flags.pop("recipe")
    given = {**_recipe_values(parser, Path(recipe)), **flags} if recipe else flags
    return resolve(given)


def resolve(given: dict[str, Any]) -> ResolvedArguments:
    """Complete the given flags with the defaults for their method, data and model."""
    named = RunArguments(**_only(given, RunArguments))
    values = {**vars(named), **defaults.defaults_for(named.method, named.data, named.model), **given}
    run = RunArguments(**_only(values, RunArguments))
    values |= _consequences(values, given)
    values.setdefault("output_dir", _free_folder(run))
    try:
        training = TrainingFlags(**_only(values, TrainingFlags))
    except (TypeError, ValueError) as error:
        raise ArgumentError(str(error)) from error
    return ResolvedArguments(run, training, values)


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping held by a recipe file (JSON is read as the YAML it is)."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"recipe {path} does not exist; give the path of a YAML or JSON file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: not readable as YAML or JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise ArgumentError(f"{path}: a recipe is a mapping of flag names to values, found {type(recipe).__name__}")
    unknown = [str(key) for key in recipe if key not in flag_names()]
    if unknown:
        raise ArgumentError(f"{path}: {_unknown('key', unknown, flag_names())}")
    return recipe


def _recipe_values(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    recipe = read_recipe(path)
    # A command line cannot say "nothing", a recipe can.
    nothing = {name: value for name, value in recipe.items() if value is None or value == []}
    tokens = [token for name, value in recipe.items() if name not in nothing for token in _as_flag(name, value)]
    try:
        values = _parse(parser, tokens)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from error
    values.pop("recipe")
    return {**nothing, **values}


def _as_flag(name: str, value: Any) -> list[str]:
    """A recipe entry as command-line tokens; `=` keeps values that start with a minus sign."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _parse(parser: argparse.ArgumentParser, tokens: Sequence[str]) -> dict[str, Any]:
    # argparse leaves attributes alone that are already there, so what is still unset was not given.
    unset = object()
    namespace, rest = parser.parse_known_args(tokens, argparse.Namespace(**dict.fromkeys(flag_names(), unset)))
    if rest:
        known = [f"--{name}" for name in flag_names()]
        flags = [token.partition("=")[0] for token in rest if token.startswith("-")]
        raise ArgumentError(_unknown("flag", flags, known) if flags else f"unexpected argument {rest[0]!r}")
    return {name: value for name, value in vars(namespace).items() if value is not unset}


def _unknown(kind: str, names: Iterable[str], known: list[str]) -> str:
    """ "unknown flag --shot (did you mean --shots?)" for every name."""
    parts = []
    for name in names:
        closest = difflib.get_close_matches(name.replace("_", "-"), [k.replace("_", "-") for k in known], n=1)
        hint = next((k for k in known if closest and k.replace("_", "-") == closest[0]), None)
        parts.append(f"unknown {kind} {name}" + (f" (did you mean {hint}?)" if hint else ""))
    return "; ".join(parts) + "; --help lists all of them"


def _only(values: dict[str, Any], cls: type) -> dict[str, Any]:
    names = {f.name for f in fields(cls) if f.init}
    return {name: value for name, value in values.items() if name in names}


def _consequences(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Defaults that must follow what the user chose, so that one flag is enough to say one thing."""
    implied: dict[str, Any] = {}
    evaluates = values["eval_strategy"] != "no"
    if evaluates:
        implied["save_strategy"] = values["eval_strategy"]
        implied["save_steps"] = values["eval_steps"]
    if not evaluates or given.get("save_strategy") == "no":
        implied["load_best_model_at_end"] = False
    if "num_train_epochs" in given:
        implied["max_steps"] = -1
    if not torch.cuda.is_available():
        # transformers refuses bf16 without a GPU unless it is told that the CPU is meant.
        implied |= {"dataloader_pin_memory": False} | ({"use_cpu": True} if values.get("bf16") else {})
    return {name: value for name, value in implied.items() if name not in given}


def _free_folder(run: RunArguments) -> str:
    """runs/MODEL-DATA-METHOD, numbered so that a second run does not touch the first."""
    parts = (Path(run.model).name, Path(run.data.replace(":", "-")).name, run.method)
    stem = Path("runs") / "-".join(parts)
    folder, number = stem, 1
    # Processes of one distributed run must agree on a name that the first of them has perhaps just made.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    while alone and folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return str(folder)
