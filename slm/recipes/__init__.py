"""The recipes, and the settings that override them.

Some are shipped with slm. The `pipelines.yaml` of a project adds its own, and replaces a shipped
one of the same name. A recipe states only what differs from the defaults in `slm.config`, and may
have a `description`, which nothing depends on. An override is a dotted key and a value:
`train.max_steps=100`. Every unknown key, recipe or value is refused with the nearest valid one
before any work starts.
"""

from slm.recipes.load import check_recipes, given_later, load_recipe, load_with_origins
from slm.recipes.overrides import parse_overrides
from slm.recipes.pipelines import (
    DESCRIPTION,
    Recipe,
    default_recipe,
    describe,
    find_recipes,
    read_pipelines,
    shipped_pipelines,
    store_address,
)
from slm.recipes.settings import Setting, dotted_keys, explain, is_setting, sections

__all__ = [
    "DESCRIPTION",
    "Recipe",
    "Setting",
    "check_recipes",
    "default_recipe",
    "describe",
    "dotted_keys",
    "explain",
    "find_recipes",
    "given_later",
    "is_setting",
    "load_recipe",
    "load_with_origins",
    "parse_overrides",
    "read_pipelines",
    "sections",
    "shipped_pipelines",
    "store_address",
]
