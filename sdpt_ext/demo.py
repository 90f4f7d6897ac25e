"""A web page to try a detector: `python -m sdpt_ext.demo --adapter RUN`; needs `pip install "sdpt_ext[demo]"`.

With an adapter the page shows what the model finds with it, and without it.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import nn

from sdpt_ext.cli import add_model_arguments, command, load_detector, whole_number
from sdpt_ext.data.collate import EvalCollator
from sdpt_ext.models.glip.captions import parse_names
from sdpt_ext.predict import find_objects
from sdpt_ext.tuners import adapter_disabled
from sdpt_ext.visualization import draw_detections

if TYPE_CHECKING:
    import gradio

_Found = tuple[Image.Image, str]


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m sdpt_ext.demo",
        description="Serve a web page that finds objects by their names on pictures that are dropped on it.",
    )
    add_model_arguments(parser)
    parser.add_argument("--text", default="", metavar="NAMES", help="names that the page starts with")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=whole_number(1), default=7860, help="default: %(default)s")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Serve from the command line, until interrupted."""
    arguments = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f'the demo needs gradio ({error}): pip install "sdpt_ext[demo]"') from error
    finder = ObjectFinder(*load_detector(arguments), has_adapter=arguments.adapter is not None)
    page = build_page(gradio, finder, arguments.text)
    page.launch(server_name=arguments.host, server_port=arguments.port)


class ObjectFinder:
    """What the page calls: objects on a picture, with the adapter and without it."""

    def __init__(self, model: nn.Module, processor: Any, has_adapter: bool) -> None:
        self.model, self.processor, self.has_adapter = model, processor, has_adapter
        # Switching the adapter off changes the model for everybody who asks meanwhile.
        self._alone = threading.Lock()

    def __call__(self, picture: Image.Image | None, text: str, threshold: float) -> list[_Found]:
        """Drawn picture and summary, of the tuned model first.

        Raises:
            ValueError: no picture or no names.
        """
        names = parse_names(text)
        if picture is None or not names:
            raise ValueError('give a picture, and names such as "raccoon. fox"')
        with self._alone:
            found = [self._find(picture, names, threshold)]
            if self.has_adapter:
                with adapter_disabled(self.model):
                    found.append(self._find(picture, names, threshold))
        return found

    def _find(self, picture: Image.Image, names: Sequence[str], threshold: float) -> _Found:
        boxes = find_objects(self.model, EvalCollator(self.processor, names), picture, threshold)
        counts = Counter(box.name for box in boxes)
        return draw_detections(picture, boxes), ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing"


def build_page(gradio: Any, finder: ObjectFinder, text: str = "") -> gradio.Blocks:
    """The page around a finder; gradio is the module."""

    def answer(picture: Image.Image | None, text: str, threshold: float) -> list[Any]:
        try:
            return [part for found in finder(picture, text, threshold) for part in found]
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    titles = ["With the adapter", "Without it"] if finder.has_adapter else ["Found"]
    with gradio.Blocks(title="sdpt_ext") as page:
        with gradio.Row():
            picture = gradio.Image(type="pil", image_mode="RGB", label="Picture")
            with gradio.Column():
                names = gradio.Textbox(text, label="Names", placeholder="raccoon. fox")
                threshold = gradio.Slider(0.0, 1.0, 0.45, step=0.05, label="Lowest score")
                button = gradio.Button("Find", variant="primary")
        with gradio.Row():
            results = [part for title in titles for part in _result(gradio, title)]
        gradio.on([button.click, names.submit], answer, [picture, names, threshold], results)
    return page


def _result(gradio: Any, title: str) -> list[Any]:
    with gradio.Column():
        return [gradio.Image(type="pil", label=title, interactive=False), gradio.Textbox(label=f"{title}: counts")]


if __name__ == "__main__":
    main()
