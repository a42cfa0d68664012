"""Begin a project: look at the data, choose settings, write the files."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm.config import DEFAULT_RECIPE, DataConfig, PipelineConfig
from slm.errors import UserError, listing
from slm.figures import size
from slm.project import files
from slm.project.decide import Ask, Dataset, Question, by_rule, dataset
from slm.project.fit import Choice, Machine, fit, this_machine, val_fraction
from slm.project.survey import Survey, survey
from slm.recipes import load_recipe
from slm.source.splits import counted
from slm.tokens import holdout

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
STORIES_NAME = "stories"
GATE_DOCUMENTS = 20  # held-out ones that promotion needs: slm/registry/vetoes.py, a test checks
_NO_GATE = f"promotion to champion needs {GATE_DOCUMENTS}"


@dataclass(frozen=True)
class Project:
    """What `init` has written, and why."""

    folder: Path
    recipe: str
    written: list[str]
    kept: list[str]  # files that were there already
    choices: list[Choice] = field(repr=False)
    machine: Machine | None = None
    survey: Survey | None = field(default=None, repr=False)  # None of the generated stories
    dataset: Dataset | None = field(default=None, repr=False)
    notes: list[tuple[str, str]] = field(
        default_factory=list, repr=False
    )  # what was seen: label, text

    @property
    def rules(self) -> list[tuple[str, Any, str]]:
        """What was taken by a rule that no question shows: setting, value, why."""
        if self.dataset is None:
            return []
        asked = {question.key for question, _ in self.dataset.decided}
        facts, data = self.dataset.facts, self.dataset.data
        keys = [k for k in ("path", "format", "separator") if k in facts]
        return [(f"data.{k}", getattr(data, k), facts[k]) for k in keys if f"data.{k}" not in asked]

    @property
    def decided(self) -> list[tuple[Question, str]]:
        """What was doubtful, and the answers."""
        return self.dataset.decided if self.dataset else []

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        seen = self.survey
        return {
            "folder": str(self.folder),
            "recipe": self.recipe,
            "written": self.written,
            "kept": self.kept,
            "data": None
            if seen is None
            else {
                "format": seen.format,
                "splits": {
                    name: {"documents": f.documents, "bytes": f.bytes, "exact": f.exact}
                    for name, f in seen.splits.items()
                },
                "median_bytes": seen.median,
                "p95_bytes": seen.p95,
                "columns": self.dataset.columns if self.dataset else [],
                "notes": [": ".join(note) for note in self.notes],
            },
            "machine": self.machine.name if self.machine else None,
            "decided": {question.key: answer for question, answer in self.decided},
            "settings": {choice.key: choice.value for choice in self.choices},
            "why": {choice.key: choice.why for choice in self.choices if choice.why},
        }


def init(
    folder: str | Path = ".",
    data: str | Path | None = None,
    *,
    name: str | None = None,
    ask: Ask = by_rule,
) -> Project:
    """Write `pipelines.yaml`, `.gitignore` and `data/README.md` of a new project.

    >>> slm.init("articles", "articles.jsonl").recipe
    'articles'

    The recipe's settings fit the data's size, the lengths of its documents and this machine; each
    is explained in the file. Nothing that exists is overwritten.

    Args:
        folder: is made where it does not exist.
        data: a file, a folder or a glob; `hub:OWNER/NAME` for a dataset of the Hugging Face hub;
            None: the generated stories, by the recipe `quickstart`.
        name: of the recipe and of the registered model; by default that of the data.
        ask: answers what is doubtful; by default a rule does.

    Raises UserError where the folder has a `pipelines.yaml`, or the data cannot be read; SlmError
    where the hub cannot be reached.
    """
    target = Path(folder).expanduser().absolute()
    target = Path(os.path.normpath(target))
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a folder")
    if (target / files.PIPELINES).exists():
        raise files.already(target)
    if name is not None and not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r} is not valid: 1 to 64 letters, digits, '.', '_' and '-', a letter or "
            "digit first"
        )
    if data is None:
        return _of_stories(target, name)
    given = str(data)
    results = Path(os.environ.get("SLM_DATA") or target / "data").expanduser().absolute()
    chosen = dataset(given, results, ask)
    seen = survey(chosen.splits, chosen.data, results)
    machine = this_machine()
    recipe = name or _name_of(chosen.data)
    stated = list(_data_choices(chosen, target))
    choices = [*_registry(recipe, chosen.data, name), *stated, *fit(seen, chosen.data, machine)]
    notes = list(_notes(chosen, seen))
    return _write(
        Project(target, recipe, [], [], choices, machine, seen, chosen, notes),
        f"The documents of {recipe}",
    )


def _write(project: Project, about: str) -> Project:
    """Write the files; the recipe is checked first, as `slm check` does."""
    notes = map(": ".join, project.notes)
    text = files.pipelines_yaml(project.recipe, about, notes, project.choices)
    written, kept = files.write(project.folder, text)
    load_recipe(project.recipe, path=project.folder / files.PIPELINES)
    return Project(**{**vars(project), "written": written, "kept": kept})


def _of_stories(folder: Path, name: str | None) -> Project:
    """The recipe `quickstart` under another name."""
    config = load_recipe(DEFAULT_RECIPE)
    recipe = name or STORIES_NAME
    choices = [Choice("registry.model", name, "the name of the registered model")] if name else []
    why = {
        "data": "short stories from the project's own grammar: nothing is downloaded",
        "model": "small enough for minutes on a CPU",
        "train": f"as in the recipe {DEFAULT_RECIPE} that comes with slm",
        "benchmark": "minimal pairs in the vocabulary of these stories",
        "report": "beginnings of the samples in the report",
    }
    for section, values in config.model_dump(mode="json", exclude_unset=True).items():
        if isinstance(values, dict) and section in why:
            flat = _flat(section, values)
            choices += [Choice(key, value, why[section]) for key, value in flat]
    return _write(Project(folder, recipe, [], [], choices), "The generated stories")


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f"{prefix}.{key}", value


def _name_of(data: DataConfig) -> str:
    """The name of a model of the data, as it is registered by default."""
    config = PipelineConfig.model_validate(
        {"recipe": "model", "data": data, "train": {"max_steps": 1}}
    )
    return config.model_name


def _registry(recipe: str, data: DataConfig, name: str | None) -> Iterator[Choice]:
    """The registered model's name, where the data has another."""
    if name is not None and name != _name_of(data):
        yield Choice("registry.model", recipe, "the name of the registered model")


def _data_choices(chosen: Dataset, folder: Path) -> Iterator[Choice]:
    """The settings of the data that are not the default, each with its reason."""
    data = chosen.data
    yield Choice("data.source", data.source, "")
    yield Choice("data.path", relative(data.path, folder) if data.source == "files" else data.path,
                 chosen.facts.get("path", ""))  # fmt: skip
    for field_name in (
        "config_name", "revision", "val_split", "format", "separator", "text_column", "template",
    ):  # fmt: skip
        value = getattr(data, field_name)
        if value != DataConfig.model_fields[field_name].default:
            yield Choice(f"data.{field_name}", value, chosen.facts.get(field_name, ""))


def relative(path: str, folder: Path) -> str:
    """A path as the recipe has it: relative where it is inside the project's folder."""
    inside = Path(os.path.normpath(path))
    if inside != folder and inside.is_relative_to(folder):
        return inside.relative_to(folder).as_posix()
    return "." if inside == folder else inside.as_posix()


# ---- what is printed --------------------------------------------------------------------------


def _notes(chosen: Dataset, seen: Survey) -> Iterator[tuple[str, str]]:
    """What was seen of the data, a line each, with its label."""
    layout = chosen.layout
    for split, figures in seen.splits.items():
        origin = layout.inputs.get(split, "") if layout else ""
        about = "" if figures.exact else "about "
        yield (
            split,
            f"{about}{counted(figures.documents, 'document')}, {about}{size(figures.bytes)} of "
            f"text, {seen.format} ({origin})",
        )
    if "val" not in seen.splits:
        yield "val", _held_out(chosen.data, seen)
    yield (
        "lengths",
        f"half of the documents have at most {counted(seen.median, 'byte')}, 95 of 100 at most "
        f"{counted(seen.p95, 'byte')}",
    )
    if chosen.columns:
        yield "columns", f"{listing(chosen.columns)}; the text is {_text(chosen)}"
    for note in layout.notes if layout else ():
        yield "note", note


def _text(chosen: Dataset) -> str:
    """The column or template that is the text, and why, unless that was a question."""
    data = chosen.data
    name = data.text_column if data.template is None else data.template
    asked = any(question.key == "data.text_column" for question, _ in chosen.decided)
    return repr(name) if asked else f"{name!r}, {chosen.facts['text_column']}"


def _held_out(data: DataConfig, seen: Survey) -> str:
    """What is held out of a dataset without a val split, as encoding will."""
    documents = seen.train.documents
    if documents < holdout.MIN_VAL_DOCUMENTS:
        return (
            "no split is named so: the end of each document is held out, as they are so few "
            f"({_NO_GATE})"
        )
    fraction = val_fraction(seen) or data.val_fraction
    count = max(round(fraction * documents), holdout.minimum(documents))
    few = f" ({_NO_GATE})" if count < GATE_DOCUMENTS else ""
    held_out = counted(count, "document")
    return f"no split is named so: about {held_out} are held out, by their hash{few}"
