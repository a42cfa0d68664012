"""The fields of a recipe or of overrides: nested mappings, as they are written."""

from collections.abc import Mapping
from typing import Any


def mapping(value: Any) -> dict[str, Any]:
    """The value itself, where it is a mapping; else an empty one."""
    return value if isinstance(value, dict) else {}


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` overridden by `extra`, section by section."""
    merged = dict(base)
    for key, value in extra.items():
        merged[key] = merge(mapping(merged.get(key)), value) if isinstance(value, dict) else value
    return merged


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.max_steps": 100}` → `{"train": {"max_steps": 100}}`."""
    fields: dict[str, Any] = {}
    for key, value in overrides.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        fields = merge(fields, value)
    return fields
