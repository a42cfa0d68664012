"""The help: types in words, examples, what is wrong with a command line, the first hour."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.exceptions import TyperException

from slm.cli.completion import run_names
from slm.config import DEFAULT_RECIPE
from slm.errors import SlmError, plain
from slm.other_names import nearest
from slm.recipes import default_recipe, dotted_keys

_WORDS = {int: "whole number", float: "number", str: "text", Path: "path"}


class Command(TyperCommand):
    """A command whose help has types in words, and one paragraph in the list of all commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        paragraph = (self.help or "").partition("\n\n")[0]
        self.short_help = self.short_help or " ".join(paragraph.split())

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx))


class Group(TyperGroup):
    """The command `slm` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx))


def _in_words(params: Sequence[Any]) -> list[Any]:
    for param in params:
        vars(param)["display_type_rich"] = partial(type_in_words, param)
    return list(params)


def type_in_words(param: Any, ctx: object = None) -> str:
    """What a person writes for a parameter; nothing of a switch, which takes no value.

    <int> → whole number, <list[str]> → text, <float32|int8> → float32 or int8.
    """
    is_argument = isinstance(param, TyperArgument)
    if param.metavar and not is_argument:
        return str(param.metavar)
    descriptor = param.type_descriptor
    if descriptor.is_choice:
        return " or ".join(str(getattr(choice, "value", choice)) for choice in descriptor.choices)
    kind = descriptor.annotation
    kind = getattr(kind, "__args__", (kind,))[0]  # of a list, that of its items
    if kind is bool or (is_argument and kind is str):
        return ""
    return _WORDS.get(kind, "text")


def examples(command: Any) -> list[str]:
    """The examples of a command's help, each a command line.

    `Example: slm a`, or a paragraph `Examples: slm a · slm b` → [slm a, slm b].
    """
    text = f"{command.help or ''}\n\n{command.epilog or ''}"
    paragraphs = re.findall(r"^ *Examples?: *(slm .+?)(?:\n *\n|\Z)", text, flags=re.M | re.S)
    return [" ".join(line.split()) for each in paragraphs for line in each.split("·")]


# ---- a command line that is wrong -------------------------------------------------------------


def usage_message(error: TyperException) -> str:
    """What is wrong with a command line, and where its help is, in one line."""
    message = plain_usage(error.format_message())
    if message.startswith("No such option"):
        option = str(getattr(error, "option_name", "")).lstrip("-")
        if near := nearest(option, dotted_keys()):
            return f"{error.message}; a setting is changed by --set {near[0]}=VALUE"
    context = getattr(error, "ctx", None)
    parameter = getattr(error, "param", None)
    if message.startswith("Missing argument") and (text := getattr(parameter, "help", None)):
        message = f"{message}: {text[0].lower()}{text[1:].rstrip('.')}"
    elif context and (
        extra := re.fullmatch(r"Got unexpected extra argument(?:s|\(s\))? \((.+)\)", message)
    ):
        usage = " ".join((context.command_path, *_arguments(context.command)))
        message = f"one argument too many, {extra[1]!r}: the command is `{usage}`"
    return f"{message}; see `{context.command_path} --help`" if context else message


def _arguments(command: Any) -> list[str]:
    """Its arguments as the help names them: ["RUN", "FOLDER"]."""
    arguments = (param for param in command.params if isinstance(param, TyperArgument))
    return [str(param.metavar or param.name).upper() for param in arguments]


def plain_usage(message: str) -> str:
    """`Invalid value for '-n' / '--samples': Input should be…` → `-n / --samples: give…`."""
    text = " ".join(message.rstrip(". ").split())
    if value := re.fullmatch(r"Invalid value(?: for (.+?))?: (.+)", text):
        name = (value[1] or "the command line").replace("'", "")
        return f"{name}: {plain(value[2])}"
    return text


# ---- slm, without a command -------------------------------------------------------------------


def first_hour() -> Table:
    """The five commands of the first hour, with the newest runs of the data folder."""
    newest, before, *_ = [*run_names(""), "RUN", "RUN"]
    try:
        recipe = default_recipe()
    except SlmError:  # pipelines.yaml is broken, which the commands report
        recipe = DEFAULT_RECIPE
    is_shipped = recipe == DEFAULT_RECIPE
    made = "generated stories → a registered model" if is_shipped else f"{recipe}: data → model"
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(overflow="fold", ratio=3)
    table.add_column(style="dim", ratio=2)
    for line, text in (
        ("slm run", made),
        (f"slm sample {newest}", "let it write"),
        (f"slm report {newest} --open", "its report, in the browser"),
        (f"slm train {recipe} --set train.max_steps=300", "another one, a setting changed"),
        (f"slm compare {before} {newest}", "settings, curves, samples"),
    ):
        table.add_row(Text(line), Text(text))
    return table
