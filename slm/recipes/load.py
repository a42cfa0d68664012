"""A recipe with overrides → the checked config."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.config import DEFAULT_RECIPE, LIMITS, PipelineConfig, data_name
from slm.errors import UserError, unknown
from slm.recipes.check import checked
from slm.recipes.fields import mapping, merge, nested
from slm.recipes.numbers import plain_numbers
from slm.recipes.paths import with_paths
from slm.recipes.pipelines import DESCRIPTION, Recipe, describe, find_recipes
from slm.recipes.settings import SOURCES, kinds_in
from slm.size import Origin, resolve

DATA_NAME = "{data}"  # as the setting `name`: that of the data


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
    changes = nested(overrides or {})
    fields = _without_replaced(_stated(recipes[name]), changes)
    _check_names(fields, changes)
    kinds = kinds_in(fields, changes)
    fields, changes, origins = resolve(plain_numbers(fields, kinds), plain_numbers(changes, kinds))
    merged = merge(fields, changes)
    if "recipe" in merged:
        raise UserError(f"recipe {name}: `recipe` is the recipe's name, not a setting: remove it")
    placed = with_paths(merged, changes, recipes[name].file.parent)
    return checked({**_with_name(placed), "recipe": name}), origins


def _stated(recipe: Recipe) -> dict[str, Any]:
    """What a recipe states besides its description. Raises UserError for what is no recipe."""
    fields = recipe.fields or {}
    if not isinstance(fields, dict):
        raise UserError(
            f"recipe {recipe.name} is a {type(fields).__name__}, not a mapping of sections such as "
            "train: {max_steps: 100}"
        )
    describe(recipe.name, fields)  # raises where it is no text
    return {key: value for key, value in fields.items() if key != DESCRIPTION}


def _without_replaced(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that an override of another setting replaces.

    A limit replaces the recipe's own; a vocabulary replaces the recipe's trimmed one.
    """
    if any(limit in LIMITS for limit in mapping(changes.get("train"))):
        replaced = (*LIMITS, "max_passes")
        kept = {k: v for k, v in mapping(fields.get("train")).items() if k not in replaced}
        fields = {**fields, "train": kept}
    tokenizer = mapping(mapping(changes.get("data")).get("tokenizer"))
    if tokenizer.get("train") or tokenizer.get("path"):
        data = mapping(fields.get("data"))
        fields = {**fields, "data": {k: v for k, v in data.items() if k != "vocab_size"}}
    return fields


def _check_names(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises UserError where overrides change a source that a mixture has not: a misspelt one.

    One that they add says where its documents are.
    """
    known, changed = (
        mapping(mapping(each.get("data")).get("sources")) for each in (fields, changes)
    )
    for name, text in changed.items():
        if known and name not in known and not {"source", "path"} & set(mapping(text)):
            raise unknown("source", name, known)


def _with_name(fields: dict[str, Any]) -> dict[str, Any]:
    """The same, with the name of the data where `name` asks for it."""
    if fields.get("name") != DATA_NAME:
        return fields
    data = mapping(fields.get("data"))
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


def given_later(recipe: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Stand-ins for what a recipe leaves to the command line: an empty `data.path`."""
    data = mapping(mapping(recipe).get("data"))
    texts = {"data": data}
    for name, source in mapping(data.get("sources")).items():
        texts[f"{SOURCES}.{name}"] = mapping(source)
    for key, text in texts.items():
        if text.get("source", "stories") != "stories" and not text.get("path"):
            yield f"{key}.path", "."
