"""`pipelines.yaml`: the recipes of a project, before those that are shipped, and its store."""

import copy
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from slm.config import DEFAULT_RECIPE, PIPELINES, project_root
from slm.errors import UserError
from slm.recipes.fields import mapping

DESCRIPTION = "description"  # of a recipe: a line for `slm recipes`


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
        raise UserError(f"{path} is not valid YAML: {yaml_problem(error)}") from error
    recipes = (content.get("recipes") or {}) if isinstance(content, dict) else None
    if not isinstance(recipes, dict):
        raise UserError(f"{path} has no mapping `recipes:`")
    return {**content, "recipes": recipes}


def shipped_pipelines() -> Path:
    """The file of the shipped recipes: in an installed package, or at the top of a checkout."""
    installed = Path(__file__).parents[1] / PIPELINES
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


def yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML text and at which place, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    line = "(a tab: indent by blanks) " if "'\\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {line}{' '.join(problem.split())}"


def default_recipe() -> str:
    """The recipe of a command that names none: the only one of the file, else quickstart."""
    path = project_root() / PIPELINES
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
    text = mapping(recipe).get(DESCRIPTION) or ""
    if not isinstance(text, str):
        raise UserError(f"recipe {name}: description={text!r} is not a text")
    return " ".join(text.split())
