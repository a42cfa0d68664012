"""Paths into nested columns, written as in jq.

`meta.title` is a field of an object, `text[]` are the items of a list and `messages[].content` a
field of each item: one per line. `messages[0].content` is that of the first item, and
`messages[-1].content` that of the last.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_STEP = re.compile(r"(\[(?:-?\d{1,9})?\])|\.([^.\[\]]+)")
_PATH = re.compile(rf"([^.\[\]]+)((?:{_STEP.pattern})+)")
_ITEMS = "[]"


@dataclass(frozen=True)
class Misfit:
    """What is in the place of a value that a path does not lead to."""

    kind: str  # of the value that the path does not fit


def column_of(path: str, names: Iterable[str]) -> str:
    """The column that a path leads into: its own name where there is one, else its beginning."""
    return path if path in names else split_path(path)[0]


def split_path(path: str) -> tuple[str, tuple[str, ...]]:
    """`messages[].content` → `messages`, (`[]`, `content`); of a plain name no steps."""
    match = _PATH.fullmatch(path)
    if match is None:
        return path, ()
    return match[1], tuple(items or field for items, field in _STEP.findall(match[2]))


def _is_items(step: str) -> bool:
    """Whether a step is `[]` or `[N]`; a field's name has no brackets."""
    return step.startswith("[")


def pick(value: Any, steps: Sequence[str]) -> Any:
    """What a path leads to in a value, nulls left out; a Misfit where it does not fit.

    `[{"content": "a"}, {"content": None}, {"content": "b"}]` by (`[]`, `content`) is `"a\\nb"`,
    by (`[0]`, `content`) it is `"a"`, and by `[3]`, which it lacks, null.
    """
    if value is None or not steps:
        return value
    step, rest = steps[0], steps[1:]
    if not _is_items(step):
        return pick(value.get(step), rest) if isinstance(value, dict) else _misfit(value)
    if not isinstance(value, list):
        return _misfit(value)
    if step != _ITEMS:
        index = int(step[1:-1])
        return pick(value[index], rest) if -len(value) <= index < len(value) else None
    items = [picked for item in value if (picked := pick(item, rest)) is not None]
    if not items:
        return None
    others = (item for item in items if not isinstance(item, str | bytes))
    if (other := next(others, None)) is not None:
        return other if isinstance(other, Misfit) else _misfit(other)
    if all(isinstance(item, str) for item in items):
        return "\n".join(items)
    return b"\n".join(item.encode() if isinstance(item, str) else item for item in items)


def _misfit(value: Any) -> Misfit:
    return Misfit(type(value).__name__)


def type_of(kind: pa.DataType, steps: Sequence[str]) -> pa.DataType:
    """The type that a path leads to; a nested one where it does not fit."""
    for step in steps:
        if _is_items(step) and _is_list(kind):
            kind = kind.value_type
        elif not _is_items(step) and pa.types.is_struct(kind) and kind.get_field_index(step) >= 0:
            kind = kind.field(step).type
        else:
            return pa.struct([])
    return kind


def text_paths(name: str, kind: pa.DataType) -> list[str]:
    """The paths to text in a column: `text`, `text[]`, `messages[].content`."""
    if pa.types.is_struct(kind):
        return [path for f in kind for path in text_paths(f"{name}.{f.name}", f.type)]
    if _is_list(kind):
        return text_paths(name + _ITEMS, kind.value_type)
    return [name] if is_text(kind) and not pa.types.is_null(kind) else []


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type may be text: strings, bytes, or nulls alone."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    tests = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_binary,
        types.is_large_binary, types.is_binary_view, types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view)
    return any(test(kind) for test in tests)


def json_paths(row: Mapping[str, Any]) -> list[str]:
    """The paths to text in a JSON object."""
    paths = []
    for name, value in row.items():
        try:
            paths += text_paths(name, pa.infer_type([value]))
        except (pa.ArrowException, OverflowError, TypeError):  # of mixed types
            continue
    return paths
