"""Tasks by their names: built in, from a file, from a folder of files, or from the hub.

    blimp                                     built in; read from the hub, at a commit
    stories                                   built in; minimal pairs in the stories' vocabulary
    FILE or FOLDER                            json, jsonl, parquet, csv or tsv
    NAME=FILE or NAME=FOLDER                  the same, by this name
    NAME=hf:OWNER/DATASET@COMMIT[/PATH]       a file or folder of a dataset on the hub

The files of a folder are the paradigms of one task, unless their rows name them. What a row holds
is in `items.py`.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from slm.config import DataConfig, data_name
from slm.errors import CorruptionError, SlmError, UserError, check_utf8, excerpt, unknown
from slm.evaluation.benchmark.items import Item, Kind, Row, Task, item_of, minimal_pair
from slm.evaluation.benchmark.pairs import story_pairs
from slm.progress import Progress, silent
from slm.source.documents import FORMATS, format_of
from slm.source.formats.contents import refuse_others
from slm.source.formats.json_rows import json_rows
from slm.source.formats.text import MAX_DOCUMENT_BYTES, lines_of

HUB = "hf:"
BLIMP = "hf:nyu-mll/blimp@877fba0801ffb7cbd8c39c1ff314a46f053f6036"


def _stories() -> list[Item]:
    return [minimal_pair(pair.good, pair.bad, pair.paradigm) for pair in story_pairs()]


BUILT_IN: dict[str, str | Callable[[], Sequence[Item]]] = {"blimp": BLIMP, "stories": _stories}
"""Built-in tasks: where each is on the hub, or what makes its items, which are minimal pairs."""

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})=(.+)", re.DOTALL)
_ON_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)@([^/]*)(?:/(.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TABLES = ("parquet", "jsonl", "csv", "tsv")  # the formats that have columns
_SUFFIXES = tuple(suffix for suffix, kind in FORMATS.items() if kind in _TABLES)
_DELIMITERS = {"csv": ",", "tsv": "\t"}


class TaskSource(NamedTuple):
    """What a task is called, and where its items are."""

    name: str
    where: str  # a built-in name, a path, or an address on the hub

    @property
    def on_hub(self) -> bool:
        return self.where.startswith(HUB)


def parse_task(text: str) -> TaskSource:
    """Name and place of a task as it is given, such as `blimp=blimp.parquet`.

    >>> parse_task("blimp"), parse_task("tests/colours.jsonl")
    (TaskSource("blimp", "blimp"), TaskSource("colours", "tests/colours.jsonl"))

    Raises UserError for a name that is neither built in nor a path.
    """
    check_utf8(text, "the task", "rename it")
    if text in BUILT_IN:
        return TaskSource(text, text)
    if named := _NAMED.fullmatch(text):
        return TaskSource(named[1], named[2])
    if text.startswith(HUB):
        raise UserError(f"task {excerpt(text)}: give it a name, NAME={excerpt(text)}")
    if "/" in text or Path(text).exists() or format_of(Path(text)) is not None:
        if name := data_name(text):
            return TaskSource(name, text)
        raise UserError(f"task {excerpt(text)}: give it a name, NAME={excerpt(text)}")
    near = unknown("task", text, BUILT_IN)
    raise UserError(f"{near}; or a file or folder of items: NAME=PATH")


def read_tasks(tasks: Iterable[str], progress: Progress = silent) -> list[Task]:
    """The tasks of these names. Raises UserError as `read_task` does, and for a name given twice.

    All names are checked before the first task is read.
    """
    sources = [parse_task(text) for text in tasks]
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two tasks are named {twice[0]}: name one of them anew, NAME=PATH")
    return [read_task(source, progress) for source in sources]


def are_here(tasks: Iterable[str]) -> bool:
    """Whether all tasks can be read without the hub: they are local, or in its cache."""
    for source in map(parse_task, tasks):
        where = BUILT_IN.get(source.where) or source.where
        if isinstance(where, str) and where.startswith(HUB):
            from slm.source import hub

            data, commit, inside = _dataset(source.name, where)
            files = hub.kept_files(data, commit)
            chosen = [file for file in files or () if _is_of(file.path, inside)]
            if files is None or not all(map(hub.is_kept, chosen)):
                return False
    return True


def read_task(source: TaskSource, progress: Progress = silent) -> Task:
    """The items of a task.

    Raises UserError where it is missing, has no items or cannot be read; SlmError where the hub
    cannot be reached.
    """
    built_in = BUILT_IN.get(source.where)
    if callable(built_in):
        return Task(source.name, "minimal_pairs", source.where, tuple(built_in()))
    where = built_in or source.where
    on_hub = where.startswith(HUB)
    files = _fetch(source.name, where, progress) if on_hub else _local(Path(where).expanduser())
    return _read(source, files, by_file=len(files) > 1)


def _read(source: TaskSource, files: Sequence[tuple[str, Path]], *, by_file: bool) -> Task:
    """The task of some files, each with its paradigm. `by_file`: whether files are paradigms."""
    items: list[Item] = []
    kinds: set[Kind] = set()
    for group, path in files:
        for place, row in rows_of(path):
            kind, item = item_of(row, f"{path}, {place}", group if by_file else None)
            kinds.add(kind)
            items.append(item)
    if len(kinds) > 1:
        raise UserError(f"task {source.name} has minimal pairs and questions: make two tasks of it")
    if not items:
        raise UserError(f"task {source.name}: {source.where} holds no items")
    _check_groups(source, items)
    return Task(source.name, kinds.pop(), source.where, tuple(items))


def _check_groups(source: TaskSource, items: Sequence[Item]) -> None:
    """Raise UserError where only some items have a paradigm, or one is in two fields."""
    without = sum(item.group is None for item in items)
    if 0 < without < len(items):
        raise UserError(
            f"task {source.name}: {without:,} of its {len(items):,} items name no paradigm: give "
            "all of them one, or none"
        )
    fields: dict[str, str | None] = {}
    for item in items:
        if item.group and fields.setdefault(item.group, item.field) != item.field:
            raise UserError(f"task {source.name}: paradigm {item.group} is in two fields")


# ---- files ------------------------------------------------------------------------------------


def _local(path: Path) -> list[tuple[str, Path]]:
    """The files of a path, each with the name of its paradigm."""
    if path.is_file():
        return [(path.stem, path)]
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist: give a file of items ({', '.join(_SUFFIXES)}) or a folder of "
            "such files"
        )
    files = [
        each
        for each in sorted(path.iterdir())
        if each.is_file() and not each.name.startswith(".") and format_of(each) in _TABLES
    ]
    if not files:
        raise UserError(f"{path} has no file of items: {', '.join(_SUFFIXES)}")
    return [(data_name(each.name), each) for each in files]


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place, such as `line 3`.

    Raises UserError where its format is not one of tables, or it is not what its name promises.
    """
    kind = format_of(path)
    if kind not in _TABLES:
        raise UserError(f"{path} is not in a format of items: {', '.join(_SUFFIXES)}")
    refuse_others(str(path), [path], kind if kind == "parquet" else None, b"")
    if kind == "parquet":
        return _parquet_rows(path)
    return json_rows(path) if kind == "jsonl" else _csv_rows(path, _DELIMITERS[kind])


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, page_checksum_verification=True).to_pylist()
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise CorruptionError(f"{path} cannot be read as parquet: {line}") from error
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    lines = (f"{line}\n" for line in lines_of(path))
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: not as many fields as its header names"
                )
            yield f"line {reader.line_num}", {name: value or None for name, value in row.items()}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


# ---- the hub ----------------------------------------------------------------------------------


def _fetch(name: str, address: str, progress: Progress) -> list[tuple[str, Path]]:
    """The files of a task on the hub, verified; each with the name of its paradigm.

    In the layout of `datasets` a folder is a configuration, and so a paradigm.
    """
    from slm.source import hub

    data, commit, inside = _dataset(name, address)
    try:
        chosen = [file for file in hub.files_at(data, commit) if _is_of(file.path, inside)]
        paths = [hub.fetch(data, commit, file, progress) for file in chosen]
    except SlmError as error:
        raise _of_task(name, error) from error
    if not chosen:
        raise UserError(f"task {name}: {address} has no file of items: {', '.join(_SUFFIXES)}")
    files = list(zip((Path(file.path) for file in chosen), paths, strict=True))
    one_each = len({file.parent for file, _ in files}) == len(files) > 1
    return [(file.parent.name if one_each else data_name(file.name), at) for file, at in files]


def _dataset(name: str, address: str) -> tuple[DataConfig, str, str]:
    """The dataset of a task's address, its commit, and the path in it. Raises UserError."""
    parts = _ON_HUB.fullmatch(address)
    if parts is None:
        raise UserError(
            f"task {name}: {excerpt(address)} is not hf:OWNER/DATASET@COMMIT or "
            "hf:OWNER/DATASET@COMMIT/PATH"
        )
    dataset, commit, inside = parts[1], parts[2], (parts[3] or "").strip("/")
    if not _COMMIT.fullmatch(commit):
        raise UserError(
            f"task {name}: {excerpt(commit)!r} is not a commit of {dataset}: give its 40 digits, "
            "so that the items never change"
        )
    return DataConfig(source="hub", path=dataset, revision=commit), commit, inside


def _is_of(path: str, inside: str) -> bool:
    """Whether a file of a dataset has items and is that path, or is below it."""
    below = not inside or path == inside or path.startswith(f"{inside}/")
    about = path == "dataset_infos.json" or any(p.startswith(".") for p in Path(path).parts)
    return below and not about and format_of(Path(path)) in _TABLES


def _of_task(name: str, error: SlmError) -> SlmError:
    """An error of the hub's client, which speaks of `data.path`, as one of a task."""
    text = str(error).replace("data.path=", "")
    text = text.replace("use data.source=files with a local copy", f"give a copy, {name}=FILE")
    return type(error)(f"task {name}: {text}")
