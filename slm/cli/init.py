"""`slm init`: a new project for one's own data."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.options import AsJson, console, show
from slm.config import data_root

if TYPE_CHECKING:
    from slm.project.decide import Question
    from slm.project.start import Project


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where; made if it does not exist.")
    ] = Path(),
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|hub:ID",
            help="A file, a folder or a glob, or a dataset of the hub: hub:OWNER/NAME, with "
            ":CONFIGURATION and @REVISION after it where needed. Without it: generated stories.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the recipe and of the model; by default that of the data."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a project: a recipe that fits the data and this machine, and its deployments.

    Example: slm init articles --data articles.jsonl
    """
    if os.environ.get("HF_HOME") == f"{data_root()}/cache/huggingface" and (
        "SLM_DATA" not in os.environ
    ):
        os.environ["HF_HOME"] = f"{folder.absolute()}/data/cache/huggingface"  # not in this folder
    from slm.project.decide import by_rule
    from slm.project.start import init as start

    on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    project = start(folder, data, name=name, ask=ask if on_terminal else by_rule)
    if as_json:
        show(project.as_json(), as_json)
        return
    screen = console()
    for label, text in lines(project, asked=on_terminal):
        screen.print(f"{label:<9} {text}", soft_wrap=True)


def lines(project: "Project", *, asked: bool) -> list[tuple[str, str]]:
    """What is printed: a label and a text each."""
    shown = list(project.notes)
    shown += [("rule", f"{key}: {value!r}, {why}") for key, value, why in project.rules]
    for question, answer in [] if asked else project.decided:
        shown.append(("rule", f"{question.key}: {answer}, {question.rule}"))
    if project.machine:
        shown.append(("machine", project.machine.name))
    settings = {choice.key.partition(".")[2]: choice.value for choice in project.choices}
    parts = (
        ("vocabulary {:,}", "vocab_size"), ("context {}", "seq_len"), ("width {}", "n_embd"),
        ("{} layers", "n_layer"), ("{:,} tokens per step", "tokens_per_step"),
        ("{} s", "max_seconds"), ("{} steps", "max_steps"),
    )  # fmt: skip
    chosen = [text.format(settings[key]) for text, key in parts if key in settings]
    shown.append(("recipe", f"{project.recipe}: {', '.join(chosen)}"))
    here = project.folder == Path.cwd()
    shown.append(("written", ", ".join(str(place(project, file)) for file in project.written)))
    shown += [("kept", f"{place(project, file)}, which was there") for file in project.kept]
    shown.append(("next", "slm run" if here else f"cd {place(project, '')} && slm run"))
    return shown


def place(project: "Project", file: str) -> Path:
    """A file of the project, relative to the working folder where it is inside."""
    path = project.folder / file
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def ask(question: "Question") -> str:
    """Ask on the terminal, until the answer is one of the choices, by number or name."""
    typer.echo(question.text)
    names = list(question.choices)
    for number, (name, meaning) in enumerate(question.choices.items(), 1):
        typer.echo(f"  {number}  {name}  {meaning}".rstrip())
    default = names.index(question.default) + 1
    while True:
        given = str(typer.prompt(f"  a number ({question.rule})", default=str(default))).strip()
        if given in question.choices:
            return given
        if given.isdigit() and 1 <= int(given) <= len(names):
            return names[int(given) - 1]
        typer.echo(f"  {given!r} is none of 1 to {len(names)}")
