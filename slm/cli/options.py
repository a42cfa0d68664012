"""What the commands share: their arguments, and how results are shown."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from slm.config import PipelineConfig
from slm.orchestration.display import Display, showing_on
from slm.recipes import load_recipe, parse_overrides
from slm.storage import to_json

WIDTH = 240  # characters of a line that is not for a terminal

RecipeName = Annotated[str, typer.Argument(help="A recipe of pipelines.yaml; see `slm recipes`.")]
RecipeOrDefault = Annotated[
    str | None,
    typer.Argument(
        help="A recipe of pipelines.yaml; without it the only one there is, else quickstart."
    ),
]
REFERENCE = (
    "A run's name, the beginning of its key (4 digits or more), latest, its folder, NAME@ALIAS "
    "such as slm@champion, or models:/NAME/VERSION."
)
RunName = Annotated[str, typer.Argument(metavar="RUN", help=REFERENCE)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting: train.max_steps=100. `slm recipes --explain` lists all. Put single "
        r"quotes around what has backslashes or blanks: 'data.separator=\n\n'.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the run's folders and of its model; no result depends on it. The same as "
        "--set name=NAME.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")]


def overrides(settings: list[str] | None, name: str | None = None) -> dict[str, Any]:
    """What `--set` and `--name` change, by dotted keys. Raises UserError."""
    return parse_overrides(settings or []) | ({} if name is None else {"name": name})


def load(recipe: str, settings: list[str] | None, name: str | None = None) -> PipelineConfig:
    """The config of a recipe with `--set` and `--name`. Raises UserError."""
    return load_recipe(recipe, overrides(settings, name))


# ---- showing ----------------------------------------------------------------------------------


@contextmanager
def display_for(as_json: bool) -> Iterator[Display]:
    """Show stages on stdout, or on stderr where stdout is for JSON."""
    with showing_on(console(stderr=as_json)) as display:
        try:
            yield display
        except KeyboardInterrupt:
            command = shlex.join(["slm", *sys.argv[1:]])
            display.write(f"interrupted: what is done is kept; `{command}` resumes from there")
            raise


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result: one line of JSON, or one line per value, mappings left out."""
    if as_json:
        print(to_json(result, ensure_ascii=False))
        return
    from slm.cli import tables

    shown = {name: value for name, value in result.items() if not isinstance(value, dict)}
    show_wide(tables.pairs(shown))


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints texts as they are: `[a]` is no markup, and `90:100:` no emoji."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def show_wide(content: RenderableType) -> None:
    """Print as wide as the terminal; into a file or a pipe, so wide that no name is broken."""
    console(width=None if sys.stdout.isatty() else WIDTH).print(content)


def show_line(line: str) -> None:
    console().print(line, soft_wrap=True)


def date(moment: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else None
