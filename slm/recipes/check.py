"""The check of a new config, and the one message for what is wrong with it."""

import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from slm.config import SEED_ERROR, SOURCE_NAME_RULE, PipelineConfig, TrainConfig
from slm.errors import UserError, first_invalid
from slm.other_names import unknown_setting
from slm.recipes.numbers import plain_numbers
from slm.recipes.settings import (
    SOURCES,
    Kinds,
    dotted_keys,
    invalid,
    kinds_in,
    sections,
    sections_of,
    source_of,
)


def checked(fields: dict[str, Any]) -> PipelineConfig:
    """The config of these fields. What only a new config must not hold is refused here.

    Configs that older runs were made with stay readable: they are not checked again.
    """
    kinds = kinds_in(fields)
    try:
        config = PipelineConfig.model_validate(plain_numbers(fields, kinds))
    except ValidationError as error:
        raise _refusal(error, fields, kinds) from error
    _check_moments(config.train)
    _check_schedule(config.train)
    _check_passes(config.train)
    return config


def _refusal(error: ValidationError, fields: Mapping[str, Any], kinds: Kinds) -> UserError:
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
        valid = [*kinds, *sections(), *sections_of(kinds)]
        if (name := source_of(".".join(parts))) is not None:
            valid = [key for key in valid if key.startswith(f"{SOURCES}.{name}")]
        return unknown_setting(".".join(parts), valid)
    if parts[:2] == ["data", "sources"] and parts[3:] == ["[key]"]:
        return UserError(f"data.sources: {parts[2]!r} is no name of a source: {SOURCE_NAME_RULE}")
    while len(parts) > 2 and ".".join(parts) not in kinds:
        parts.pop()  # inside a union or a list, pydantic's path continues below the key
    key = ".".join(parts)
    if first["type"] == "value_error":  # one of our own checks, whose message is complete
        message, name = str(first["ctx"]["error"]), source_of(f"{place}.")
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
