"""The recipes, and the settings that override them.

Some are shipped with slm. The `pipelines.yaml` of a project adds its own, and replaces a shipped
one of the same name. A recipe states only what differs from the defaults in `slm.config`, and may
have a `description`, which nothing depends on. An override is a dotted key and a value:
`train.max_steps=100`. Every unknown key, recipe or value is refused with the nearest valid one
before any work starts.
"""

import copy
import glob
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from slm.config import (
    DEFAULT_RECIPE,
    LIMITS,
    NAME,
    NAME_RULE,
    PIPELINES,
    SEED_ERROR,
    SOURCE_NAME_RULE,
    PipelineConfig,
    Section,
    SourceConfig,
    TrainConfig,
    data_name,
    project_root,
)
from slm.errors import UserError, excerpt, first_invalid, unknown
from slm.other_names import unknown_setting
from slm.size import Origin, resolve

DESCRIPTION = "description"  # of a recipe: a line for `slm recipes`
MAX_DIGITS = 30  # of a whole number: 1e999999999 is no number that anything could count to
DATA_NAME = "{data}"  # as the setting `name`: that of the data
_ESCAPED = ("separator", "template")  # settings of a text in which a backslash begins an escape
SOURCES = "data.sources"
_SHORT_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "0": "\0", "\\": "\\"}
_ESCAPE = re.compile(r"\\(?:([ntrf0\\])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is written."""

    name: str
    fields: Any  # sections and settings, not checked yet
    file: Path
    shipped: bool  # whether it comes with slm


class _PlainNumbers(yaml.SafeLoader):
    """YAML whose numbers are decimal: `nnodes: 1:4` is that text, not 64, a number of base 60."""

    def decimal_or_text(self, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            return node.value
        integer = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)


_PlainNumbers.add_constructor("tag:yaml.org,2002:int", _PlainNumbers.decimal_or_text)
_PlainNumbers.add_constructor("tag:yaml.org,2002:float", _PlainNumbers.decimal_or_text)


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """The data of a YAML text. Not to be changed: the next call of the same text returns them."""
    return _PlainNumbers(text).get_single_data()


def read_pipelines(path: Path) -> dict[str, Any]:
    """A parsed `pipelines.yaml`. Raises UserError where it is missing or not such a file."""
    try:
        content = copy.deepcopy(_parsed(path.read_text(encoding="utf-8"))) or {}
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: `slm init` makes one, or work in a folder that has one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {_where(error)}") from error
    recipes = (content.get("recipes") or {}) if isinstance(content, dict) else None
    if not isinstance(recipes, dict):
        raise UserError(f"{path} has no mapping `recipes:`")
    return {**content, "recipes": recipes}


def shipped_pipelines() -> Path:
    """The file of the shipped recipes: in an installed package, or at the top of a checkout."""
    installed = Path(__file__).with_name(PIPELINES)
    return installed if installed.is_file() else installed.parents[1] / PIPELINES


def find_recipes(path: Path | None = None) -> dict[str, Recipe]:
    """Every recipe by its name, the project's own before those that are only shipped.

    Args:
        path: the project's `pipelines.yaml`; None: that of the working folder, if it has one.

    Raises UserError as `read_pipelines` does.
    """
    own, shipped = path or project_root() / PIPELINES, shipped_pipelines()
    files = [shipped]
    if own.resolve() != shipped.resolve() and (path or own.is_file()):
        files.insert(0, own)
    recipes: dict[str, Recipe] = {}
    for file in files:
        for key, fields in read_pipelines(file)["recipes"].items():
            recipe = Recipe(str(key), fields, file, shipped=file == shipped)
            recipes.setdefault(recipe.name, recipe)
    return recipes


def load_recipe(
    name: str = DEFAULT_RECIPE,
    overrides: Mapping[str, Any] | None = None,
    *,
    path: Path | None = None,
) -> PipelineConfig:
    """The config of a recipe with overrides by dotted key, checked.

    What `size` or `depth` derives (`slm.size`) is among its plain settings. A relative `data.path`
    of local files is relative to the recipe's file where the recipe gives it, and to the working
    folder where an override does; so are `data.tokenizer.path` and a folder in `train.init_from`.

    Args:
        path: as of `find_recipes`.

    Raises UserError naming the field, the value and the nearest valid one.
    """
    return load_with_origins(name, overrides, path=path)[0]


def load_with_origins(
    name: str = DEFAULT_RECIPE,
    overrides: Mapping[str, Any] | None = None,
    *,
    path: Path | None = None,
) -> tuple[PipelineConfig, list[Origin]]:
    """`load_recipe`, and where what a `size` or `depth` could derive came from; empty without."""
    recipes = find_recipes(path)
    if name not in recipes:
        raise unknown("recipe", name, recipes)
    fields: dict[str, Any] = recipes[name].fields or {}
    if not isinstance(fields, dict):
        raise UserError(
            f"recipe {name} is a {type(fields).__name__}, not a mapping of sections such as "
            "train: {max_steps: 100}"
        )
    describe(name, fields)  # raises where it is no text
    fields = {key: value for key, value in fields.items() if key != DESCRIPTION}
    changes: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        for part in reversed(key.split(".")):
            value = {part: value}
        changes = _merge(changes, value)
    if any(limit in LIMITS for limit in _mapping(changes.get("train"))):
        replaced = (*LIMITS, "max_passes")
        kept = {k: v for k, v in _mapping(fields.get("train")).items() if k not in replaced}
        fields = {**fields, "train": kept}  # a limit that is set replaces the recipe's own
    own = _mapping(_mapping(changes.get("data")).get("tokenizer"))
    if own.get("train") or own.get("path"):  # which replaces the recipe's trimmed vocabulary
        data = _mapping(fields.get("data"))
        fields = {**fields, "data": {k: v for k, v in data.items() if k != "vocab_size"}}
    _check_names(fields, changes)
    kinds = _kinds(fields, changes)
    fields, changes, origins = resolve(_numbers(fields, kinds), _numbers(changes, kinds))
    merged = _merge(fields, changes)
    if "recipe" in merged:
        raise UserError(f"recipe {name}: `recipe` is the recipe's name, not a setting: remove it")
    merged = _with_paths_of_texts(merged, changes, recipes[name].file.parent)
    if "path" not in _mapping(_mapping(changes.get("data")).get("tokenizer")):
        merged = _with_tokenizer_path(merged, recipes[name].file.parent)
    if "tasks" not in _mapping(changes.get("benchmark")):
        merged = _with_task_paths(merged, recipes[name].file.parent)
    if "init_from" not in _mapping(changes.get("train")):
        merged = _with_start_path(merged, recipes[name].file.parent)
    return _checked({**_with_name(merged), "recipe": name}), origins


def _check_names(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises UserError where overrides change a source that a mixture has not: a misspelt one.

    One that they add says where its documents are.
    """
    known, changed = (
        _mapping(_mapping(each.get("data")).get("sources")) for each in (fields, changes)
    )
    for name, text in changed.items():
        if known and name not in known and not {"source", "path"} & set(_mapping(text)):
            raise unknown("source", name, known)


def _with_paths_of_texts(
    fields: dict[str, Any], changes: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The same, with absolute paths of local files and of functions: of `data`, and each source."""
    data, changed = _mapping(fields.get("data")), _mapping(changes.get("data"))
    if not data:
        return fields
    placed = _with_function_paths(_with_path(data, changed, folder), changed, folder)
    sources, of_sources = _mapping(data.get("sources")), _mapping(changed.get("sources"))
    if sources:
        placed["sources"] = {
            name: _with_function_paths(_with_path(text, own, folder), own, folder)
            if isinstance(text, dict)
            else text
            for name, text in sources.items()
            for own in [_mapping(of_sources.get(name))]
        }
    return {**fields, "data": placed}


def _with_path(text: dict[str, Any], changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of one text, with a relative path of local files as one below the folder of the
    recipe, unless an override gives it, of `changes`.
    """
    path = text.get("path")
    if "path" in changes or text.get("source") != "files" or not isinstance(path, str) or not path:
        return text
    if Path(path).is_absolute() or path.startswith("~") or "://" in path:
        return text
    above = str(folder.resolve())
    placed = Path(glob.escape(above) if glob.has_magic(path) else above, path)
    return {**text, "path": os.path.normpath(placed)}


def _with_function_paths(
    text: dict[str, Any], changes: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The settings of one text, with absolute paths of the files of functions.

    A relative one is below the folder of the recipe; where an override gives it, of `changes`,
    below the working folder.
    """
    clean, changed, placed = _mapping(text.get("clean")), _mapping(changes.get("clean")), {}
    for kind in ("map", "filter"):
        function = clean.get(kind)
        if isinstance(function, str) and ".py:" in function and not function.startswith("~"):
            above = Path.cwd() if kind in changed else folder.resolve()
            placed[kind] = os.path.normpath(above / function)
    return {**text, "clean": {**clean, **placed}} if placed else dict(text)


def _with_tokenizer_path(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same, with a relative path of a given tokenizer as one below the folder of the recipe."""
    data = _mapping(fields.get("data"))
    section = _mapping(data.get("tokenizer"))
    path = section.get("path")
    if not isinstance(path, str) or not path or path.startswith(("hf:", "~", "/")):
        return fields
    placed = {**section, "path": os.path.normpath(folder.resolve() / path)}
    return {**fields, "data": {**data, "tokenizer": placed}}


def _with_task_paths(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same, with relative paths of tasks as ones below the folder of the recipe."""
    section = _mapping(fields.get("benchmark"))
    tasks = section.get("tasks")
    if not isinstance(tasks, list | tuple) or not all(isinstance(task, str) for task in tasks):
        return fields
    placed = [_placed_task(task, folder.resolve()) for task in tasks]
    return {**fields, "benchmark": {**section, "tasks": placed}}


def _placed_task(task: str, folder: Path) -> str:
    """A task with an absolute path; a built-in one, or one of the hub, stays as it is."""
    name, equals, path = task.rpartition("=")
    is_path = "/" in path or equals or (folder / path).is_file()
    if path.startswith(("~", "hf:", "/")) or not path or not is_path:
        return task
    return f"{name}{equals}{os.path.normpath(folder / path)}"


def _with_start_path(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same, with `train.init_from` below the folder of the recipe where such a folder is there.

    Else it is the name of a run, of a version or of a model of the hub.
    """
    train = _mapping(fields.get("train"))
    text = train.get("init_from")
    if not isinstance(text, str) or text.startswith(("models:", "~")):
        return fields
    scheme = "hf:" if text.startswith("hf:") else ""
    placed = folder.resolve() / text.removeprefix(scheme)
    if Path(text.removeprefix(scheme)).is_absolute() or not (placed / "config.json").is_file():
        return fields
    return {**fields, "train": {**train, "init_from": f"{scheme}{os.path.normpath(placed)}"}}


def _with_name(fields: dict[str, Any]) -> dict[str, Any]:
    """The same, with the name of the data where `name` asks for it."""
    if fields.get("name") != DATA_NAME:
        return fields
    data = _mapping(fields.get("data"))
    path = str(data.get("path") or "")
    if data.get("sources"):
        return {**fields, "name": None}
    if data.get("source") == "files":  # also of "." and "*.txt", which are in a folder with a name
        path = os.path.normpath(Path(path).expanduser().absolute())
    named = data.get("source") in ("files", "hub") and data_name(path)
    return {**fields, "name": named or None}


def check_recipes(path: Path | None = None) -> int:
    """Check every recipe; returns their number. Raises UserError for the first that is wrong.

    What a recipe leaves to the command line, an empty `data.path`, is no error.
    """
    recipes = find_recipes(path)
    for name, recipe in recipes.items():
        load_recipe(name, dict(given_later(recipe.fields)), path=path)
    return len(recipes)


def _where(error: Exception) -> str:
    """What is wrong with a YAML text and at which place, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    line = "(a tab: indent by blanks) " if "'\\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {line}{' '.join(problem.split())}"


def default_recipe() -> str:
    """The recipe of a command that names none: the only one of the file, else quickstart."""
    path = project_root() / "pipelines.yaml"
    recipes = read_pipelines(path)["recipes"] if path.is_file() else {}
    return str(next(iter(recipes))) if len(recipes) == 1 else DEFAULT_RECIPE


def store_address() -> str | None:
    """The store of the project: SLM_STORE, else `store:` in `pipelines.yaml`; None without one.

    SLM_STORE that is set and empty means none.
    """
    given = os.environ.get("SLM_STORE")
    path = project_root() / PIPELINES
    if given is None and path.is_file():
        given = read_pipelines(path).get("store")
        if given is not None and not isinstance(given, str):
            raise UserError(f"{path}: store={given!r} is not an address, such as s3://BUCKET/slm")
    return given or None


def describe(name: str, recipe: Any) -> str:
    """A recipe's description, one line; empty where it has none. No key or config has it."""
    text = _mapping(recipe).get(DESCRIPTION) or ""
    if not isinstance(text, str):
        raise UserError(f"recipe {name}: description={text!r} is not a text")
    return " ".join(text.split())


def given_later(recipe: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Stand-ins for what a recipe leaves to the command line: an empty `data.path`."""
    data = _mapping(_mapping(recipe).get("data"))
    texts = {"data": data}
    for name, source in _mapping(data.get("sources")).items():
        texts[f"{SOURCES}.{name}"] = _mapping(source)
    for key, text in texts.items():
        if text.get("source", "stories") != "stories" and not text.get("path"):
            yield f"{key}.path", "."


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`["train.max_steps=100"]` → `{"train.max_steps": 100}`.

    Values are YAML scalars or lists. Text settings are taken literally, unless they are in quotes;
    `null` unsets a setting that is optional. In `data.separator` and `data.template`, also of a
    source of a mixture, a `\\n` is a line break, without the quotes too, which a shell removes:
    `data.separator=\\n\\n`.
    """
    keys = (assignment.partition("=")[0].strip() for assignment in assignments)
    kinds = {key: kind for key, (kind, _) in _kinds_of(filter(None, map(_source_of, keys))).items()}
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
                f"--set {assignment!r}: the value is not valid YAML: {_where(error)}"
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


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` overridden by `extra`, section by section."""
    merged = dict(base)
    for key, value in extra.items():
        merged[key] = _merge(_mapping(merged.get(key)), value) if isinstance(value, dict) else value
    return merged


def _checked(fields: dict[str, Any]) -> PipelineConfig:
    """The config of these fields. What only a new config must not hold is refused here.

    Configs that older runs were made with stay readable: they are not checked again.
    """
    kinds = _kinds(fields)
    try:
        config = PipelineConfig.model_validate(_numbers(fields, kinds))
    except ValidationError as error:
        raise _refusal(error, fields, kinds) from error
    _check_moments(config.train)
    _check_schedule(config.train)
    _check_passes(config.train)
    return config


def _refusal(error: ValidationError, fields: Mapping[str, Any], kinds: "Kinds") -> UserError:
    """One message for the first thing that is wrong: key, value, and what the setting takes."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    place = ".".join(parts)
    if first["type"] == "extra_forbidden":
        given = first["input"]
        while isinstance(given, dict) and given:  # a section that is misspelt
            part, given = next(iter(given.items()))
            parts.append(str(part))
        if parts[:2] == ["data", "phases"]:
            return invalid(place, first["input"], kinds["data.phases"][1])
        valid = [*kinds, *sections(), *_sections_of(kinds)]
        if (name := _source_of(".".join(parts))) is not None:
            valid = [key for key in valid if key.startswith(f"{SOURCES}.{name}")]
        return unknown_setting(".".join(parts), valid)
    if parts[:2] == ["data", "sources"] and parts[3:] == ["[key]"]:
        return UserError(f"data.sources: {parts[2]!r} is no name of a source: {SOURCE_NAME_RULE}")
    while len(parts) > 2 and ".".join(parts) not in kinds:
        parts.pop()  # inside a union or a list, pydantic's path continues below the key
    key = ".".join(parts)
    if first["type"] == "value_error":  # one of our own checks, whose message is complete
        message, name = str(first["ctx"]["error"]), _source_of(f"{place}.")
        return UserError(message.replace("data.", f"{SOURCES}.{name}.") if name else message)
    if first["type"] == SEED_ERROR:
        return UserError(f"{key}={first['input']!r}: {first['msg']}")
    if first["type"] == "missing":
        return UserError(f"recipe {first['input'].get('recipe')}: it has no section `{key}`")
    if key in kinds:
        return invalid(place if key == "data.phases" else key, first["input"], kinds[key][1])
    if key in sections():
        example = next(name for name in dotted_keys() if name.startswith(f"{key}."))
        return invalid(key, first["input"], f"settings of its own, such as {example}")
    return UserError(f"recipe {fields.get('recipe')}: {first_invalid(error)}")


def invalid(key: str, value: Any, words: str) -> UserError:
    """The error for a value that a setting does not take; `words`: what it takes."""
    # A whole section may hold an address with a password.
    shown = "" if isinstance(value, dict | list) else f"={excerpt(repr(value))}"
    return UserError(f"{key}{shown} is not valid; it takes: {words}")


def _check_moments(train: TrainConfig) -> None:
    """Raises UserError for a decay rate so near to 1 that float32, which it is used in, is 1."""
    for name in ("beta1", "beta2"):
        (rounded,) = struct.unpack("f", struct.pack("f", getattr(train, name)))
        if rounded == 1:
            raise UserError(
                f"train.{name}={getattr(train, name)!r} is 1 in float32: its moment would never "
                "change; give a smaller one, such as 0.9999"
            )


def _check_schedule(train: TrainConfig) -> None:
    """Raises UserError where the decay of wsd would begin within the warmup."""
    if train.schedule == "wsd" and Decimal(str(train.warmup)) + Decimal(str(train.cooldown)) > 1:
        raise UserError(
            f"train.warmup={train.warmup} and train.cooldown={train.cooldown} overlap: of wsd they "
            "are fractions of the same steps; together at most 1"
        )


def _check_passes(train: TrainConfig) -> None:
    """Raises UserError where nothing is left to bound."""
    if train.max_passes is not None and (train.max_seconds or train.epochs):
        limit = "max_seconds" if train.max_seconds else "epochs"
        raise UserError(
            f"train.max_passes={train.max_passes:g} bounds train.max_steps and train.max_tokens, "
            f"and train.{limit} is the limit here: remove one of them"
        )


# ---- whole numbers ----------------------------------------------------------------------------

Kinds: TypeAlias = Mapping[str, tuple[Any, str]]  # dotted key → type, and the same in words


def _numbers(fields: Any, kinds: Kinds, key: str = "") -> Any:
    """The fields, with the numbers of settings that take whole ones as such: 1e4 → 10000.

    YAML reads 1e4 as text and 1.0e+4 as a float. Raises UserError for 1.5 and for true.
    """
    if isinstance(fields, dict):
        prefix = f"{key}." if key else ""
        return {k: _numbers(v, kinds, f"{prefix}{k}") for k, v in fields.items()}
    kind, words = kinds.get(key, (None, ""))
    if not _takes(int, kind) or _takes(float, kind):
        if isinstance(fields, bool) and _takes(float, kind):
            raise invalid(key, fields, words)
        return fields
    if isinstance(fields, list | tuple):
        return [_whole(value, key, kind, words) for value in fields]
    return _whole(fields, key, kind, words)


def _whole(value: Any, key: str, kind: Any, words: str) -> Any:
    """A whole number in any notation as an integer; what is no number as it is."""
    if isinstance(value, bool) and not _takes(bool, kind):
        raise invalid(key, value, words)
    if isinstance(value, bool) or not isinstance(value, str | float):
        return value
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return value
    if number.is_finite() and number.adjusted() < MAX_DIGITS and number == number.to_integral():
        return int(number)
    raise invalid(key, value, words)


def _takes(kind: type, annotation: Any) -> bool:
    """Whether an annotation allows values of a type, in a union or a list too."""
    return annotation is kind or any(_takes(kind, part) for part in get_args(annotation))


# ---- the settings themselves ------------------------------------------------------------------


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
    return key != "recipe" and key in _kinds_of(filter(None, [_source_of(key)]))


def sections() -> list[str]:
    """The names of the sections, such as `train` and `data.clean`."""
    keys = list(dotted_keys())
    return sorted({key[:i] for key in keys for i, c in enumerate(key) if c == "."})


@cache
def _settings() -> tuple[tuple[str, Any, Setting], ...]:
    """Every setting by its dotted key, with its type."""
    return tuple(_settings_of(PipelineConfig, ""))


def _source_of(key: str) -> str | None:
    """The source of a mixture that a setting is of: `wiki` of data.sources.wiki.path."""
    name, dot, _ = key.removeprefix(f"{SOURCES}.").partition(".")
    return name if key.startswith(f"{SOURCES}.") and name and dot else None


def _kinds(*fields: Mapping[str, Any]) -> "Kinds":
    """Type and words of every setting, those of the sources that these fields name too."""
    sources = (_mapping(_mapping(each.get("data")).get("sources")) for each in fields)
    return _kinds_of(str(name) for names in sources for name in names)


def _kinds_of(sources: Iterable[str]) -> "Kinds":
    settings = [*_settings(), *(s for name in dict.fromkeys(sources) for s in _of_source(name))]
    return {key: (kind, setting.kind) for key, kind, setting in settings}


def _sections_of(kinds: "Kinds") -> set[str]:
    """The sections that sources have, such as data.sources.wiki.clean."""
    return {key.rpartition(".")[0] for key in kinds if _source_of(key)}


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
