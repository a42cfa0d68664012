"""What the commands share: their arguments, and how results are shown."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from slm.cli.completion import assignments, recipe_names, run_references
from slm.config import PipelineConfig
from slm.orchestration.display import Display, shorten, showing_on
from slm.recipes import load_recipe, parse_overrides
from slm.storage import to_json

WIDTH = 240  # characters of a line that is not for a terminal

RecipeOrDefault = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe of pipelines.yaml; without it the only one there is, else quickstart.",
        autocompletion=recipe_names,
    ),
]
REFERENCE = (
    "A run's name, the beginning of its key (4 digits or more), latest, its folder, NAME@ALIAS "
    "such as slm@champion, or models:/NAME/VERSION."
)
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help=REFERENCE, autocompletion=run_references)
]
OptionalRunName = Annotated[
    str | None, typer.Argument(metavar="RUN", help=REFERENCE, autocompletion=run_references)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting: train.max_steps=100. `slm recipes --explain` lists all. Put single "
        r"quotes around what has backslashes or blanks: 'data.separator=\n\n'.",
        autocompletion=assignments,
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
    for name, value in shown.items():
        if isinstance(value, str) and value.startswith("/"):
            shown[name] = shorten(Path(value))
    show_wide(tables.pairs(shown))


def suggest(as_json: bool, *lines: str) -> None:
    """Show a person the commands that are useful next.

    On stderr, so that stdout has results alone: `slm sample RUN > story.txt`.
    """
    if not as_json:
        sys.stdout.flush()
        for number, line in enumerate(lines):
            word = "" if number else "next"
            console(stderr=True).print(f"{word:<9} {line}", soft_wrap=True)


def command_line(command: str, name: str, settings: list[str] | None = None) -> str:
    """A command as it is typed: `slm train quickstart --set train.max_steps=300`."""
    words = [command, name, *(word for each in settings or [] for word in ("--set", each))]
    return f"slm {shlex.join(words)}"


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints texts as they are: `[a]` is no markup, and `90:100:` no emoji."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def width() -> int:
    """Characters of a line: the terminal's; of a file or a pipe so many that no name is broken."""
    return console().width if sys.stdout.isatty() else WIDTH


def show_wide(content: RenderableType) -> None:
    console(width=width()).print(content)


def show_line(line: str) -> None:
    console().print(line, soft_wrap=True)
