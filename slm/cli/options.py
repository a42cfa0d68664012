"""What the commands share: their arguments, and how they show what they did."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from slm.orchestration.display import Display, showing_on

RecipeName = Annotated[str, typer.Argument(help="A recipe of pipelines.yaml; see `slm recipes`.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, its name, or models:/NAME@ALIAS.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help='Change a setting: train.max_steps=100; text may be quoted: data.separator="\\n\\n".',
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")]


@contextmanager
def display_for(as_json: bool) -> Iterator[Display]:
    """Shows stages on stdout, or on stderr where stdout is for JSON."""
    with showing_on(Console(stderr=as_json)) as display:
        try:
            yield display
        except KeyboardInterrupt:
            display.write("interrupted: what is done is kept, the same command goes on from there")
            raise


def show(result: dict[str, Any], as_json: bool) -> None:
    """A command's result: one line of JSON, or a line a value, mappings left out."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    from slm.cli import tables

    shown = {name: value for name, value in result.items() if not isinstance(value, dict)}
    Console(soft_wrap=True).print(tables.pairs(shown))
