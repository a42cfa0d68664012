"""The command `slm mix`: the shards of a mixture, with what of each source is in them."""

from typing import Any

from slm.cli.options import (
    AsJson,
    Name,
    RecipeOrDefault,
    Settings,
    command_line,
    display_for,
    load,
    show,
    suggest,
)
from slm.errors import UserError
from slm.orchestration import stages
from slm.recipes import default_recipe
from slm.records import Shards


def mix(
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Join the sources of a recipe's mixture, and leave out duplicates across them.

    Each source is downloaded and encoded first, unless it is complete.

    Example: slm mix RECIPE --set data.sources.wiki.weight=0.3
    """
    recipe = recipe or default_recipe()
    config = load(recipe, settings, name)
    if not config.data.sources:
        raise UserError(
            f"recipe {recipe} has one source alone, which is encoded: `slm encode {recipe}`; "
            "data.sources makes a mixture"
        )
    with display_for(as_json):
        shards = stages.all_shards(config)
    show(mixed(shards), as_json)
    suggest(as_json, command_line("train", recipe, settings), f"slm inspect {shards.name}")


def mixed(shards: Shards) -> dict[str, Any]:
    """What is shown of the shards of a mixture."""
    return {
        "shards": str(shards.path),
        "sources": {
            name: {
                "documents": part.train.documents,
                "tokens": part.train.tokens,
                "bytes": part.train.bytes,
                "held_out": part.val.documents,
                "excluded": part.excluded,
                "shards_key": part.key,
                "source_key": part.source_key,
                "license": part.license,
            }
            for name, part in shards.parts.items()
        },
    }
