"""Overrides as a job's command line has them, and grids of them, one trial per combination."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from slm.errors import UserError, excerpt
from slm.recipes import load_recipe, parse_overrides
from slm.storage import to_json

MAX_TRIALS = 1000  # Slurm's default MaxArraySize is 1001

Overrides = Mapping[str, Any]  # dotted key → value


def parse_each(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """`["train.seed=1,2"]` → `{"train.seed": [1, 2]}`; each value is written as `--set` takes it.

    Raises UserError.
    """
    each: dict[str, list[Any]] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not text:
            raise UserError(f"--set-each {assignment!r} is not KEY=A,B, such as train.seed=1,2,3")
        if key in each:
            raise UserError(f"--set-each {key} is given twice: give all its values in one")
        each[key] = [parse_overrides([f"{key}={value}"])[key] for value in _split(assignment, text)]
    return each


def _split(assignment: str, text: str) -> list[str]:
    """`1, "a, b", [2, 3]` → the texts `1`, `"a, b"` and `[2, 3]`: commas as YAML reads them."""
    try:
        node: Any = yaml.compose(f"[{text}]")
        ends = [(v.start_mark.index - 1, v.end_mark.index - 1) for v in node.value]
    except yaml.YAMLError as error:
        raise UserError(
            f"--set-each {excerpt(repr(assignment))}: the values are not a YAML list, such as "
            "1,2,3; put those with commas into quotes"
        ) from error
    return [text[start:end].strip() for start, end in ends]


def grid(each: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of values, the last key varying fastest.

    >>> grid({"train.seed": [1, 2], "model.dropout": [0.0, 0.1]})[1]
    {'train.seed': 1, 'model.dropout': 0.1}

    Raises UserError for more than `MAX_TRIALS`.
    """
    if (count := math.prod(map(len, each.values()))) > MAX_TRIALS:
        raise UserError(
            f"{count:,} combinations of {', '.join(each)}: at most {MAX_TRIALS:,} are one job; "
            "give fewer values, or several jobs"
        )
    return [dict(zip(each, values, strict=True)) for values in itertools.product(*each.values())]


def check_trials(recipe: str, overrides: Overrides, trials: Sequence[Overrides]) -> None:
    """Raise UserError where a trial is no valid config, or the same as another one."""
    seen: dict[str, int] = {}
    for index, trial in enumerate(trials):
        config = load_recipe(recipe, {**overrides, **trial})
        same = seen.setdefault(to_json(config.flat()), index)
        if same != index:
            raise UserError(
                f"trials {same} and {index} are the same, {' '.join(settings_of(trial))}: "
                "give each once"
            )


def settings_of(overrides: Overrides) -> list[str]:
    """Overrides as `--set` takes them: `{"train.max_steps": 100}` → `["train.max_steps=100"]`."""
    return [_assignment(key, value) for key, value in overrides.items()]


def _assignment(key: str, value: Any) -> str:
    """The plainest text that is read as the same value."""
    value = list(value) if isinstance(value, tuple) else value
    for text in _texts(value):
        if "\n" in text:
            continue
        assignment = f"{key}={text}"
        try:
            read = parse_overrides([assignment]).get(key)
        except UserError:
            continue
        if read == value and type(read) is type(value):
            return assignment
    raise UserError(f"{key}={excerpt(repr(value))} cannot be written as a setting: give a scalar, "
                    "or a list of them")  # fmt: skip


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    if not isinstance(value, Mapping):
        yield to_json(value, ensure_ascii=False)
        yield yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]
