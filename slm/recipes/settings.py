"""The settings by their dotted keys: the type of each, its default and its text."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from slm.config import NAME, NAME_RULE, PipelineConfig, Section, SourceConfig
from slm.errors import UserError, excerpt
from slm.other_names import unknown_setting
from slm.recipes.fields import mapping

SOURCES = "data.sources"

Kinds: TypeAlias = Mapping[str, tuple[Any, str]]  # dotted key → type, and the same in words


@dataclass(frozen=True)
class Setting:
    """A setting as a person reads it."""

    key: str
    kind: str  # such as "whole number above 0"
    default: str
    text: str


def explain(key: str | None = None) -> list[Setting]:
    """The settings of a dotted key, or of a section such as `train`; all without one.

    Raises UserError with the nearest key.
    """
    settings = {name: setting for name, _, setting in _settings() if name != "recipe"}
    if key is None:
        return list(settings.values())
    if key == SOURCES or key.startswith(f"{SOURCES}."):
        name = key.split(".")[2] if key.count(".") > 1 else "NAME"
        settings |= {name: setting for name, _, setting in _of_source(name)}
    chosen = [s for name, s in settings.items() if name == key or name.startswith(f"{key}.")]
    if not chosen:
        raise unknown_setting(key, [*settings, *sections()])
    return chosen


def dotted_keys() -> Iterator[str]:
    """Every key that an override may name, such as `train.max_steps`."""
    return (key for key, *_ in _settings() if key != "recipe")


def is_setting(key: str) -> bool:
    """Whether an override may name this key, such as `data.sources.wiki.weight` of a mixture."""
    return key != "recipe" and key in kinds_of(filter(None, [source_of(key)]))


def sections() -> list[str]:
    """The names of the sections, such as `train` and `data.clean`."""
    keys = list(dotted_keys())
    return sorted({key[:i] for key in keys for i, c in enumerate(key) if c == "."})


@cache
def _settings() -> tuple[tuple[str, Any, Setting], ...]:
    """Every setting by its dotted key, with its type."""
    return tuple(_settings_of(PipelineConfig, ""))


def source_of(key: str) -> str | None:
    """The source of a mixture that a setting is of: `wiki` of data.sources.wiki.path."""
    name, dot, _ = key.removeprefix(f"{SOURCES}.").partition(".")
    return name if key.startswith(f"{SOURCES}.") and name and dot else None


def kinds_in(*fields: Mapping[str, Any]) -> Kinds:
    """Type and words of every setting, those of the sources that these fields name too."""
    sources = (mapping(mapping(each.get("data")).get("sources")) for each in fields)
    return kinds_of(str(name) for names in sources for name in names)


def kinds_of(sources: Iterable[str]) -> Kinds:
    settings = [*_settings(), *(s for name in dict.fromkeys(sources) for s in _of_source(name))]
    return {key: (kind, setting.kind) for key, kind, setting in settings}


def sections_of(kinds: Kinds) -> set[str]:
    """The sections that sources have, such as data.sources.wiki.clean."""
    return {key.rpartition(".")[0] for key in kinds if source_of(key)}


@cache
def _of_source(name: str) -> tuple[tuple[str, Any, Setting], ...]:
    """The settings of one source of a mixture."""
    return tuple(_settings_of(SourceConfig, f"{SOURCES}.{name}."))


def _settings_of(section: type[Section], prefix: str) -> Iterator[tuple[str, Any, Setting]]:
    schemas = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _settings_of(inner, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else json.dumps(field.default, ensure_ascii=False)
            text, kind = field.description or "", _kind(schemas[name])
            if kind.startswith("list of") and "such as" not in kind:
                example = json.dumps((field.default or ["one", "two"])[:2], ensure_ascii=False)
                listed, null, _ = kind.partition(" or null")
                kind = f"{listed}, such as {example}" + (", or null" if null else "")
            yield prefix + name, inner, Setting(prefix + name, kind, default, text)


def _plural(word: re.Match[str]) -> str:
    return {"text": "texts"}.get(word[0], f"{word[0]}s")


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: an integer with exclusiveMinimum 0 → whole number above 0."""
    if "words" in schema:
        return str(schema["words"])
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if schema["type"] == "array":
        return "list of " + re.sub("^(whole number|number|text)", _plural, _kind(schema["items"]))
    names = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    if schema.get("pattern") == NAME:
        return NAME_RULE
    if schema.get("minLength"):
        return "text that is not empty"
    limits = (
        ("exclusiveMinimum", "above"),
        ("minimum", "from"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    )
    bounds = [f"{word} {schema[limit]:,}" for limit, word in limits if limit in schema]
    return " ".join((names.get(schema["type"], schema["type"]), *bounds))


def invalid(key: str, value: Any, words: str) -> UserError:
    """The error for a value that a setting does not take; `words`: what it takes."""
    # A whole section may hold an address with a password.
    shown = "" if isinstance(value, dict | list) else f"={excerpt(repr(value))}"
    return UserError(f"{key}{shown} is not valid; it takes: {words}")
