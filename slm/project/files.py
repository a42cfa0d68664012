"""The files of a new project: `pipelines.yaml`, `.gitignore`, `data/README.md`."""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slm.errors import UserError
from slm.project.fit import Choice
from slm.storage import make_folder

PIPELINES, GITIGNORE, DATA_README = "pipelines.yaml", ".gitignore", "data/README.md"
WIDTH = 100

_HEAD = """\
# The recipe {name}, and the Prefect deployments that run it, as `slm init` wrote them: edit freely.
# A recipe states only what differs from the defaults: `slm recipes --explain` lists every setting.
#
#   slm run       takes the data to a registered model; what is complete is reused
#   slm check {name}
#                 forecasts time and memory on this machine, by a probe
#   slm up        starts Prefect, MLflow and a worker, with the deployments below

recipes:
"""

_DEPLOYMENTS = """
# `slm up` deploys these; so does `prefect deploy --all --prefect-file pipelines.yaml`. Flows are
# named by their modules, and their runs start in this folder.
deployments:
  - name: {name}
    entrypoint: slm.orchestration.pipeline.pipeline
    description: {about} to a registered model, champion where it is better.
    version: "1"
    tags: [slm, {name}]
    parameters: {{recipe: {name}, overrides: {{}}}}
    work_pool: {{name: slm-process}}
    concurrency_limit: {{limit: 1, collision_strategy: ENQUEUE}}  # others wait their turn

  - name: {name}
    entrypoint: slm.orchestration.retrain.retrain
    description: {about} checked once a week; trained again if there is a reason.
    version: "1"
    tags: [slm, {name}]
    parameters: {{recipe: {name}, overrides: {{}}}}
    work_pool: {{name: slm-process}}
    concurrency_limit: {{limit: 1, collision_strategy: ENQUEUE}}
    schedules:  # a schedule that is paused on the Prefect page stays paused
      - {{cron: "0 3 * * 0", timezone: UTC, slug: weekly, active: true}}
"""

_GITIGNORE = """\
# What slm makes; it can be rebuilt.
/data/*
!/data/README.md
"""

_DATA_README = """\
# data/

Everything that `slm` produces is written here and nowhere else. `SLM_DATA` names another folder.

| folder | what |
|---|---|
| `sources/<name>-<key>/` | documents, parquet |
| `tokenizers/<name>-<key>/` | vocabularies of one's own (`data.tokenizer`) |
| `shards/<name>-<key>/` | encoded token shards and their tokenizer |
| `runs/<name>-<key>/` | one training each: config, metrics, checkpoints, evaluation, report |
| `reproduced/` | what `slm reproduce` is rebuilding |
| `mlflow/` | the MLflow store: SQLite database and artifacts |
| `prefect/` | Prefect's home |
| `logs/` | what the servers and the worker of `slm up` print |
| `cache/` | GPT-2's vocabulary, the Hugging Face cache |

A folder is complete if its `record.json` is there and every file has the sha256 that it gives. Any
of these folders can be deleted: the next run rebuilds it.
"""


def pipelines_yaml(name: str, about: str, notes: Iterable[str], choices: Sequence[Choice]) -> str:
    """The text of `pipelines.yaml`.

    Args:
        about: what the recipe's data is, in some words.
        notes: lines on the data, above the recipe.
        choices: its settings in order, those of a section together.
    """
    key = scalar(name)
    lines = [f"  {key}:", f"    description: {scalar(about)}"]
    lines += [each for note in notes for each in _comment(note, "    ")]
    section = why = ""
    for choice in choices:
        part, _, setting = choice.key.partition(".")
        if part != section:
            lines.append(f"    {part}:")
            section, why = part, ""
        if choice.why and choice.why != why:  # one reason may be that of several settings
            lines += _comment(choice.why, "      ")
        why = choice.why
        lines.append(f"      {setting}: {scalar(choice.value)}")
    head = _HEAD.format(name=name)
    return head + "\n".join(lines) + "\n" + _DEPLOYMENTS.format(name=key, about=scalar_words(about))


def _comment(text: str, indent: str) -> list[str]:
    """A text as comment lines; what is not printable is escaped, as it may be a file's name."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return textwrap.wrap(
        plain, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def scalar(value: Any) -> str:
    """A value as YAML writes it on one line: `"1e3"` stays text, and a list is `[a, b]`."""
    if isinstance(value, float):
        return json.dumps(int(value) if value >= 1 and value.is_integer() else value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def scalar_words(text: str) -> str:
    """Some words as the beginning of a plain YAML text."""
    return "".join(c for c in text if c.isalnum() or c in " ._-/,()").strip() or "The data"


def write(folder: Path, pipelines: str) -> tuple[list[str], list[str]]:
    """Write the files that are missing; returns the names of these, and of those that are kept.

    `pipelines.yaml` comes last: a folder that has it is complete. Raises UserError where it is
    there already.
    """
    texts: Mapping[str, str] = {
        GITIGNORE: _GITIGNORE,
        DATA_README: _DATA_README,
        PIPELINES: pipelines,
    }
    written, kept = [], []
    for name, text in texts.items():
        path = folder / name
        make_folder(path.parent)
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            kept.append(name)
            continue
        try:
            with file:
                file.write(text)
        except OSError:
            path.unlink()
            raise
        written.append(name)
    if PIPELINES in kept:
        raise already(folder)
    return written, kept


def already(folder: Path) -> UserError:
    return UserError(
        f"{folder / PIPELINES} exists already, and is not overwritten: give another folder "
        "(slm init FOLDER), or move the file away first"
    )
