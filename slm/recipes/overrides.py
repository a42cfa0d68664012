"""Overrides as they are typed: `--set train.max_steps=100`."""

import re
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from slm.errors import UserError
from slm.recipes.pipelines import yaml_problem
from slm.recipes.settings import kinds_of, source_of

_ESCAPED = ("separator", "template")  # settings of a text in which a backslash begins an escape
_SHORT_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "0": "\0", "\\": "\\"}
_ESCAPE = re.compile(r"\\(?:([ntrf0\\])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`["train.max_steps=100"]` → `{"train.max_steps": 100}`.

    Values are YAML scalars or lists. Text settings are taken literally, unless they are in quotes;
    `null` unsets a setting that is optional. In `data.separator` and `data.template`, also of a
    source of a mixture, a `\\n` is a line break, without the quotes too, which a shell removes:
    `data.separator=\\n\\n`.
    """
    keys = (assignment.partition("=")[0].strip() for assignment in assignments)
    kinds = {key: kind for key, (kind, _) in kinds_of(filter(None, map(source_of, keys))).items()}
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--set {assignment!r} is not key=value, such as train.max_steps=100")
        try:
            overrides[key] = (
                _text(key, text, kinds[key]) if _is_text(kinds.get(key)) else _value(text)
            )
        except yaml.YAMLError as error:
            raise UserError(
                f"--set {assignment!r}: the value is not valid YAML: {yaml_problem(error)}"
            ) from error
    return overrides


def _value(text: str) -> Any:
    return yaml.safe_load(text) if text else ""


def _text(key: str, text: str, kind: Any) -> str | None:
    """The value of a text setting, which YAML would often parse as something else."""
    if text == "null" and NoneType in get_args(kind):
        return None
    if text.startswith(("'", '"')):
        with suppress(yaml.YAMLError):
            if isinstance(quoted := yaml.safe_load(text), str):
                return quoted
    return _ESCAPE.sub(_unescaped, text) if key.rpartition(".")[2] in _ESCAPED else text


def _unescaped(escape: re.Match[str]) -> str:
    """The character that a backslash and what follows it stand for."""
    if digits := escape[2] or escape[3]:
        return chr(int(digits, 16))
    return _SHORT_ESCAPES[escape[1]]


def _is_text(kind: Any) -> bool:
    """Whether a setting of this type is a string, or one of some strings, or None."""
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return all(part is NoneType or _is_text(part) for part in get_args(kind))
    return kind is str
