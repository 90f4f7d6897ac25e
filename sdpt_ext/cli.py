"""How the commands report errors, and the arguments that they share."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from .models.glip.processing import GlipProcessor
    from .models.loading import Detector

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

EXIT_BAD_INPUT = 2


def command(main: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
    """Decorate a command's `main`: bad input becomes `error: ...` on stderr and exit code 2.

    Bad input means an OSError, or a ValueError or ImportError that this package raised itself. Everything else
    is a defect and keeps its traceback, as does bad input if the environment variable SDPT_EXT_DEBUG is set.
    """

    @functools.wraps(main)
    def wrapper(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except (OSError, ValueError, ImportError) as error:
            if os.environ.get("SDPT_EXT_DEBUG") or not _is_bad_input(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(EXIT_BAD_INPUT) from None

    return wrapper


def _is_bad_input(error: BaseException) -> bool:
    return bool(str(error)) and (isinstance(error, OSError) or _raised_here(error))


def _raised_here(error: BaseException) -> bool:
    """Whether the error left a function of this package, not of a library that the package called."""
    innermost = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return Path(innermost.f_code.co_filename).is_relative_to(Path(__file__).parent)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which detector to run, and where."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="nano",
        metavar="NAME",
        help="nano (shipped, runs on a CPU), glip-tiny, glip-large, or a folder or Hub id of a GLIP or (MM) Grounding "
        "DINO (default: %(default)s)",
    )
    group.add_argument(
        "--checkpoint", metavar="FILE", help="official GLIP checkpoint (.pth) for glip-tiny or glip-large"
    )
    group.add_argument("--adapter", metavar="DIR", help="folder with a tuned adapter, as sdpt_ext.train writes it")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one (default: auto)"
    )


def whole_number(minimum: int) -> Callable[[str], int]:
    """Argument type: a whole number of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        return value

    return parse


def fraction(text: str) -> float:
    """Argument type: a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def load_detector(arguments: argparse.Namespace) -> tuple[Detector, GlipProcessor]:
    """The model, in eval mode on its device, and the processor that `add_model_arguments` describes."""
    from .models.glip.processing import CONFIG_NAME, ProcessorConfig
    from .models.loading import load_model
    from .tuners import load_adapter

    device = resolve_device(arguments.device)
    model, processor = load_model(arguments.model, checkpoint=arguments.checkpoint)
    if arguments.adapter is not None:
        _refuse_whole_model(Path(arguments.adapter))
        load_adapter(model, arguments.adapter)
        tuned_with = Path(arguments.adapter) / CONFIG_NAME
        if tuned_with.is_file():
            processor.config = ProcessorConfig.from_file(tuned_with)
    return model.to(device).eval(), processor  # type: ignore[arg-type]  # transformers wraps `to` without its types


def _refuse_whole_model(folder: Path) -> None:
    whole = folder / "model"
    if (whole / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds a whole tuned model, not an adapter: pass --model {whole} without --adapter")


def resolve_device(name: str) -> torch.device:
    """The torch device of that name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


__all__ = [
    "EXIT_BAD_INPUT",
    "add_model_arguments",
    "command",
    "fraction",
    "load_detector",
    "resolve_device",
    "whole_number",
]
