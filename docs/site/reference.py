"""The pages of the reference, made from the code: commands, settings, Python, records, files.

`pages()` returns each page's name and its Markdown. Nothing here is written by hand but the
sentences that introduce a page, and the environment variables, whose list a test holds to the code.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

import slm
from slm import errors, run_folder
from slm.cli.help import type_in_words
from slm.cli.main import app
from slm.recipes import explain
from slm.records import data, plan, record, report, run, scores, version

# Read by slm itself, or by what it starts. A test holds the names that begin with SLM_ to the code.
ENVIRONMENT = {
    "SLM_DATA": "The data folder, in place of `data/` next to `pipelines.yaml`.",
    "SLM_STORE": "The [store](../store.md) that every stage asks, in place of `store:` in "
    "`pipelines.yaml`; empty: none.",
    "SLM_API_KEY": "The key that `slm serve` asks of its clients, as `--api-key`.",
    "SLM_JUDGE_API_KEY": "The key of the model that judges samples (`report.judge`).",
    "SLM_FAULT": "For tests: kill the process, or let its disk fail, at a "
    "[named point](../reliability.md#how-it-is-tested).",
    "HF_TOKEN": "Opens gated datasets and models of the Hugging Face hub, and pushes exports. It "
    "is stored nowhere.",
    "HF_HOME": "The cache of the hub, in place of the one in the data folder.",
    "MLFLOW_TRACKING_URI": "The MLflow server of every command, in place of the data folder's.",
    "PREFECT_API_URL": "The Prefect server of flows, in place of a temporary one.",
    "AWS_ACCESS_KEY_ID": "With `AWS_SECRET_ACCESS_KEY` and `AWS_ENDPOINT_URL`: the credentials of "
    "a store in a bucket.",
    "MASTER_ADDR": "With `MASTER_PORT`, `PET_NNODES` and `PET_RDZV_ENDPOINT`: where the nodes of a "
    "training meet, as [schedulers set it](../clusters.md#a-schedulers-variables).",
}
MAX_WIDTH = 88  # of a signature on one line
INTERNAL = {"SLM_PARENT", "SLM_LOST_SECONDS", "SLM_MIN_NODES"}  # one process of slm to another


def pages() -> dict[str, str]:
    """The Markdown of each page by its file name."""
    makers: dict[str, Callable[[], str]] = {
        "commands.md": commands,
        "settings.md": settings,
        "python.md": python,
        "records.md": record_classes,
        "files.md": files,
        "exit-codes.md": exit_codes,
        "environment.md": environment,
    }
    return {name: make().rstrip() + "\n" for name, make in makers.items()}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a cell is one line, and what is neither table nor HTML is escaped."""

    def cell(text: str) -> str:
        parts = " ".join(text.split()).replace("|", "\\|").split("`")  # odd ones are code
        parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
        return "`".join(parts)

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(map(cell, cells)) + " |"

    return "\n".join([line(head), line(("---",) * len(head)), *map(line, rows)])


# ---- commands ---------------------------------------------------------------------------------


def commands() -> str:
    """Every command by its group, with its arguments and options."""
    group: Any = typer.main.get_command(app)
    grouped: dict[str, list[tuple[str, Any]]] = {}
    for name, command in group.commands.items():
        if not command.hidden:
            grouped.setdefault(command.rich_help_panel or "Others", []).append((name, command))
    parts = [
        "# Commands",
        "`slm COMMAND --help` prints the same. With `--json` the last line of a command is one "
        'JSON object, `{"error": "…"}` where it fails. [Exit codes](exit-codes.md) are the same '
        "everywhere.",
    ]
    for title, listed in grouped.items():
        parts.append(f"## {title}")
        for name, command in listed:
            inner = getattr(command, "commands", None)
            several = [(f"{name} {sub}", c) for sub, c in inner.items()] if inner else []
            for full, each in several or [(name, command)]:
                parts.append(one_command(full, each))
    return "\n\n".join(parts)


def one_command(name: str, command: Any) -> str:
    """A command: its help, how it is called, its parameters."""
    context = command.make_context(name, [], resilient_parsing=True)
    arguments, rows = [], []
    for param in command.get_params(context):
        if param.opts == ["--help"]:
            continue
        text = getattr(param, "help", None) or ""
        if param.param_type_name == "argument":
            word = str(param.metavar or param.name).upper() + ("…" if param.nargs == -1 else "")
            arguments.append(word if param.required else f"[{word}]")
            rows.append((f"`{word}`", "", text))
            continue
        names = ", ".join(f"`{option}`" for option in (*param.opts, *param.secondary_opts))
        kind = type_in_words(param)
        default = "" if param.default in (None, False, (), []) else f" Default: {param.default}."
        rows.append((names, kind, text + ("" if "Default:" in text else default)))
    options = ["[OPTIONS]"] if len(rows) > len(arguments) else []
    usage = " ".join(["slm", name, *arguments, *options])
    paragraphs, examples = [], []
    for paragraph in (command.help or "").split("\n\n"):
        line = " ".join(paragraph.split())
        if match := re.match(r"Examples?: *(.+)", line):
            examples += [example.strip() for example in match[1].split("·")]
        else:
            paragraphs.append(line)
    shown = "\n".join([f"### slm {name}", "", *[p + "\n" for p in paragraphs]])
    body = "```text\n" + "\n".join([usage, *[f"  {e}" for e in examples]]) + "\n```"
    listed = table(("option", "value", "meaning"), rows) if rows else ""
    return f"{shown}\n{body}\n\n{listed}"


# ---- settings ---------------------------------------------------------------------------------


def settings() -> str:
    """Every setting by its section: type, default, text."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    for setting in explain():
        section = setting.key.rpartition(".")[0]
        default = f"`{setting.default}`" if setting.default else "must be set"
        row = (f"`{setting.key}`", setting.kind, default, setting.text)
        sections.setdefault(section, []).append(row)
    parts = [
        "# Settings",
        "A recipe in `pipelines.yaml` states those that differ from their defaults. "
        "`--set KEY=VALUE` changes one from outside, and a deployment takes them as `overrides`. "
        "A key that does not exist is refused with the nearest valid one. "
        "`slm recipes --explain KEY` prints the same text.",
    ]
    for section, rows in sections.items():
        parts.append(f"## {section or 'At the top'}")
        parts.append(table(("setting", "value", "default", "meaning"), rows))
    return "\n\n".join(parts)


# ---- Python -----------------------------------------------------------------------------------


def python() -> str:
    """The public names of `slm` with their signatures and docstrings."""
    parts = [
        "# Python",
        "`import slm` loads nothing heavy: each name is imported when it is first used. What a "
        "command does, one of these functions does; [From Python](../python.md) shows them at "
        "work.",
    ]
    for name in slm.__all__:
        value = getattr(slm, name)
        parts.append(f"## slm.{name}")
        if inspect.isclass(value):
            parts += [docstring(value), *members(value)]
        else:
            parts.append(f"```text\n{signature(name, value)}\n```")
            parts.append(docstring(value))
    return "\n\n".join(parts)


def signature(name: str, function: Any) -> str:
    """`slm.name(a: int, *, b=1) -> R`, a parameter per line where it is long."""
    signed = inspect.signature(function)
    parameters = [parameter_text(parameter) for parameter in signed.parameters.values()]
    kinds = [parameter.kind for parameter in signed.parameters.values()]
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    if keyword_only in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parameters.insert(kinds.index(keyword_only), "*")
    returns = signed.return_annotation
    end = "" if returns is signed.empty else f" -> {readable(returns)}"
    line = f"slm.{name}({', '.join(parameters)}){end}"
    if len(line) <= MAX_WIDTH:
        return line
    return f"slm.{name}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){end}"


def parameter_text(parameter: inspect.Parameter) -> str:
    """`name: type = default`; a default that is a function is shown by its name."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {readable(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    return f"{text} = {getattr(parameter.default, '__name__', None) or repr(parameter.default)}"


def readable(annotation: Any) -> str:
    """An annotation without the modules that its names are from, and without quotes."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text).replace("'", "")


def docstring(value: Any) -> str:
    """A docstring as Markdown: `Args:` is a list, what is shifted or begins with >>> is code."""
    lines = (inspect.getdoc(value) or "").splitlines()
    out: list[str] = []
    section = code = False
    for line in lines:
        if line.startswith(">>>") or (code and line.startswith("...")):
            out += [] if code else ["", "```py"]
            code = True
            out.append(line[4:])
            continue
        if code:
            out += ["```", ""]
            code = False
        if line in ("Args:", "Attributes:"):
            section = True
            out += ["", f"**{'Arguments' if line == 'Args:' else 'Attributes'}**", ""]
        elif section and (entry := re.match(r"    (\*{0,2}\w[\w, *]*): (.*)", line)):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.startswith("        "):
            out[-1] += f" {line.strip()}"
        else:
            section = section and not line.strip()
            out.append(line)
    return "\n".join(out + (["```"] if code else []))


def members(kind: type[Any]) -> list[str]:
    """The public properties and methods that a class defines, with their first sentence."""
    rows = []
    for name, member in vars(kind).items():
        if name.startswith(("_", "model_")) or not (
            callable(member) or isinstance(member, property)
        ):
            continue
        text = (inspect.getdoc(member) or "").partition("\n\n")[0]
        if text:
            rows.append((f"`{name}`" if isinstance(member, property) else f"`{name}()`", text))
    return [table(("name", "what it is"), rows)] if rows else []


# ---- records ----------------------------------------------------------------------------------


def record_classes() -> str:
    """Every record: its fields with their comments in the source."""
    parts = [
        "# Records",
        "A stage returns a record, and a complete folder has it as `record.json`, with the size "
        "and sha256 of each of its files. Records are frozen, and older formats are read.",
    ]
    for module in (record, data, run, scores, report, version, plan):
        for kind in vars(module).values():
            if not (inspect.isclass(kind) and issubclass(kind, record.Frozen)):
                continue
            if kind.__module__ == module.__name__:
                parts += [f"## {kind.__name__}", docstring(kind)]
                if rows := list(fields(inspect.getsource(kind).splitlines()[1:])):
                    parts.append(table(("field", "type", "meaning"), rows))
    return "\n\n".join(parts)


def fields(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """The fields that a class adds, with the comment on each one's line."""
    for line in lines:
        if match := re.match(r"    (\w+): ([^=#]+?)(?: = [^#]+)?(?:  # (.*))?$", line):
            yield f"`{match[1]}`", f"`{match[2]}`", (match[3] or "")


# ---- files, exit codes, environment -----------------------------------------------------------


def files() -> str:
    """The tree of a data folder, from the module that knows it."""
    tree = textwrap.dedent((run_folder.__doc__ or "").split("\n\n", 1)[1])
    tree, _, rest = tree.partition("\n\n")
    page = Path(__file__).parents[2] / "data" / "README.md"
    text = page.read_text("utf-8").split("\n", 1)[1]
    return "\n\n".join(
        ["# Files of a data folder", text.strip(), "## A run's folder",
         "Next to each file is what reads it in Python.",
         f"```text\n{textwrap.dedent(tree)}\n```", " ".join(rest.partition("\n\n")[0].split())]
    )  # fmt: skip


def exit_codes() -> str:
    """The exit codes, and the errors that they are of."""
    tree = (errors.__doc__ or "").split("\n\n", 1)[1].strip()
    codes = [
        ("0", "Done."),
        ("1", "Failed; the message explains what and where."),
        ("2", "Bad input: the message names what, which value, and the remedy. Nothing was begun."),
        ("3", "`slm reproduce`: within tolerance, other bits."),
        ("4", "`slm reproduce`: it cannot be repeated; the message names what is missing."),
        ("130", "Interrupted, with its state saved: the same command resumes."),
    ]
    return "\n\n".join(
        ["# Exit codes", table(("code", "meaning"), codes), "## Errors",
         "In Python each is an exception, `slm.SlmError` or below it. A failure that explains "
         "itself is one line on stderr, without a traceback.", f"```text\n{tree}\n```"]
    )  # fmt: skip


def environment() -> str:
    """The environment variables that are read."""
    rows = [(f"`{name}`", text) for name, text in ENVIRONMENT.items()]
    return "\n\n".join(
        ["# Environment variables",
         "A setting of a recipe or an option of a command decides before them, unless a line "
         "below states otherwise. Prefect, MLflow and the hub have further variables of their own.",
         table(("variable", "meaning"), rows)]
    )  # fmt: skip
