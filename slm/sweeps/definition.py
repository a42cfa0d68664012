"""A sweep as it was asked for: a recipe, a space over its settings, and how it is searched.

It comes from `sweeps:` of `pipelines.yaml`, or from the command line:

    sweeps:
      rates:
        recipe: quickstart
        space: {train.learning_rate: "log:1e-3:1e-2", model.n_layer: [2, 4, 6]}
        sampler: random
        trials: 12
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from slm import keys
from slm.config import (
    LIMITS,
    NAME,
    NAME_RULE,
    PIPELINES,
    PipelineConfig,
    PositiveInt,
    Seed,
    project_root,
)
from slm.errors import UserError, excerpt, first_invalid, unknown
from slm.extras import require
from slm.recipes import (
    DESCRIPTION,
    find_recipes,
    given_later,
    load_recipe,
    read_pipelines,
    shipped_pipelines,
)
from slm.records import Frozen
from slm.storage import sha256_json
from slm.sweeps.checking import checked_space
from slm.sweeps.halving import Halving, parse_halving
from slm.sweeps.space import Dimension, check_grid, combinations, parse_dimension, together

Sampler = Literal["tpe", "random", "grid"]
SWEEP_VERSION = 1
"""Goes up whenever the same sweep and results give other proposals."""

_STAGES = ("download", "encode", "train", "select", "evaluate")  # that a trial's score depends on
SEED = "train.seed"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Budget(Frozen):
    """What all trials together may take: no new batch begins once it is spent."""

    kind: Literal["trials", "seconds", "tokens"]
    amount: float


def parse_budget(text: str) -> Budget:
    """`90s`, `30m`, `2h`, `1e9 tokens` or `40 trials`. Raises UserError."""
    parsed = re.fullmatch(r"\s*([0-9.]+(?:e\+?\d+)?)\s*(s|m|h|tokens|trials)\s*", text.lower())
    try:
        amount = float(parsed[1]) if parsed else 0.0
    except ValueError:
        amount = 0.0
    if parsed is None or amount <= 0:
        raise UserError(f"budget={text!r} is none of 90s, 30m, 2h, 1e9 tokens, 40 trials")
    if (unit := parsed[2]) in _UNITS:
        return Budget(kind="seconds", amount=amount * _UNITS[unit])
    return Budget(kind="tokens" if unit == "tokens" else "trials", amount=amount)


class Sweep(Frozen):
    """Many trials of one recipe; `load_sweep` and `define_sweep` make one that is checked."""

    name: str
    recipe: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Dimension]
    sampler: Sampler = "random"
    trials: PositiveInt = 20
    batch: PositiveInt = 4  # trials whose proposals know of the same results
    seeds: PositiveInt = 1  # trainings of each trial, with the recipe's train.seed + 0, 1, …
    seed: Seed = 7  # of the proposals
    budget: str | None = None
    halving: Halving | None = None
    inputs: str = (
        ""  # hash of what the config only names, such as files and weights; empty: nothing
    )

    def config(self, overrides: Mapping[str, Any] | None = None) -> PipelineConfig:
        """The recipe's config with the sweep's own overrides and those of a trial."""
        return load_recipe(self.recipe, together(self.overrides, overrides or {}))

    @property
    def key(self) -> str:
        """The hash of all that its proposals and their results depend on.

        The number of trials, the budget and the workers are not in it: more continue the sweep.
        """
        config = self.config()
        stages = ("tokenizer", *_STAGES) if config.data.makes_vocabulary else _STAGES
        fields: dict[str, Any] = {stage: keys.stage_fields(stage, config) for stage in stages}
        if config.data.sources:
            fields["sources"] = {
                name: {
                    s: keys.stage_fields(s, config.of_source(name)) for s in ("download", "encode")
                }
                for name in config.data.sources
            }
        parts = {
            "version": SWEEP_VERSION,
            "config": fields,
            "init_from": config.train.init_from,
            "inputs": self.inputs,
            "space": {key: each.model_dump(mode="json") for key, each in self.space.items()},
            "sampler": self.sampler,
            "batch": self.batch,
            "seeds": self.seeds,
            "seed": self.seed,
            "halving": self.halving.model_dump() if self.halving else None,
        }
        return sha256_json(parts)

    def config_of(self, overrides: Mapping[str, Any], index: int) -> PipelineConfig:
        """The config of one training of a trial, by its index among the seeds."""
        config = self.config(overrides)
        return self.config({**overrides, SEED: config.train.seed + index}) if index else config


_FIELDS = tuple(name for name in Sweep.model_fields if name not in ("recipe", "space"))


# ---- reading ----------------------------------------------------------------------------------


def sweep_names() -> list[str]:
    """The names under `sweeps:`, the project's own and those that are shipped."""
    return list(find_sweeps())


def find_sweeps() -> dict[str, dict[str, Any]]:
    """What is under `sweeps:`, by name: the project's own before those that are only shipped.

    Raises UserError where it is no mapping of names to mappings.
    """
    own, shipped = project_root() / PIPELINES, shipped_pipelines()
    files = [own] if own.is_file() else []
    if own.resolve() != shipped.resolve():
        files.append(shipped)
    sweeps: dict[str, dict[str, Any]] = {}
    for file in files:
        given = read_pipelines(file).get("sweeps") or {}
        if not isinstance(given, dict):
            raise UserError(f"{file}: `sweeps:` is not a mapping of names to sweeps")
        for name, fields in given.items():
            if not isinstance(fields, dict):
                raise UserError(
                    f"{file}: the sweep {name} is not a mapping, such as {{recipe: quickstart, "
                    "space: {train.learning_rate: log:1e-3:1e-2}}"
                )
            sweeps.setdefault(str(name), fields)
    return sweeps


def load_sweep(name: str, /, **changes: Any) -> Sweep:
    """A sweep of `sweeps:` in `pipelines.yaml`, checked.

    Args:
        changes: fields of `Sweep` that replace its own; those that are None do not.

    Raises UserError naming the nearest sweep, or what is wrong in it.
    """
    sweeps = find_sweeps()
    if name not in sweeps:
        raise unknown("sweep", name, sweeps)
    fields = {key: value for key, value in sweeps[name].items() if key != DESCRIPTION}
    own = fields.get("overrides") or {}
    fields |= {key: value for key, value in changes.items() if value is not None}
    merged = {**own, **(changes.get("overrides") or {})} if isinstance(own, dict) else own
    fields["overrides"] = merged
    recipe, space = fields.pop("recipe", None), fields.pop("space", None)
    if not isinstance(recipe, str):
        raise UserError(f"the sweep {name} names no recipe: add `recipe: quickstart`")
    return define_sweep(recipe, space or {}, **{"name": name, **fields})


def check_sweeps() -> int:
    """Check every sweep; returns their number. Raises UserError for the first that is wrong.

    What a recipe leaves to the command line is no error.
    """
    sweeps = find_sweeps()
    recipes = find_recipes()
    for name, fields in sweeps.items():
        recipe = recipes.get(str(fields.get("recipe")))
        later = dict(given_later(recipe.fields)) if recipe else {}
        try:
            load_sweep(name, overrides=later)
        except UserError as error:
            raise UserError(f"the sweep {name}: {error}") from error
    return len(sweeps)


def define_sweep(recipe: str, space: Mapping[str, Any], **fields: Any) -> Sweep:
    """A sweep from a recipe and a space, whose dimensions may be texts; checked.

    >>> define_sweep("quickstart", {"train.learning_rate": "log:1e-3:1e-2"}, trials=12)

    Args:
        fields: other fields of `Sweep`; those that are None have their defaults.

    Raises UserError, before anything runs, for whatever the config would refuse of the space.
    """
    for name in fields:
        if name not in _FIELDS:
            raise unknown("field of a sweep", name, ["recipe", "space", *_FIELDS])
    given = {name: value for name, value in fields.items() if value is not None}
    if not isinstance(space, Mapping) or not space:
        raise UserError("a sweep needs a space, such as train.learning_rate=log:1e-3:1e-2")
    overrides = given.setdefault("overrides", {})
    if not isinstance(overrides, Mapping):
        raise UserError("overrides: give a mapping of settings to values")
    dimensions = {
        str(key): each if isinstance(each, Dimension) else parse_dimension(str(key), each)
        for key, each in sorted(space.items())
    }
    name = given.setdefault("name", load_recipe(recipe, overrides).folder_name)
    if not re.fullmatch(NAME, str(name)):
        raise UserError(f"the name {excerpt(repr(name))} of a sweep is not {NAME_RULE}")
    if not isinstance(given.get("halving"), Halving | None):
        given["halving"] = parse_halving(str(given["halving"]))
    if "budget" in given:
        given["budget"] = str(given["budget"])
        parse_budget(given["budget"])
    dimensions = checked_space(recipe, overrides, dimensions)
    if given.get("sampler") == "grid":
        check_grid(dimensions)
        given.setdefault("trials", len(combinations(dimensions) or ()))
    try:
        sweep = Sweep(recipe=recipe, space=dimensions, **given)
    except ValidationError as error:
        raise UserError(f"the sweep {name}: {first_invalid(error)}") from error
    _check_together(sweep)
    return sweep


def _check_together(sweep: Sweep) -> None:
    """Raises UserError for fields that do not fit each other, or the installation."""
    if sweep.sampler == "tpe":
        require("optuna", "the sampler tpe")
    if SEED in sweep.space and sweep.seeds > 1:
        raise UserError(
            f"{SEED} is in the space, and seeds={sweep.seeds} trains each trial with several: "
            "leave it out of the space, or set seeds to 1"
        )
    if sweep.halving:
        least = sum(sweep.halving.factor**rung for rung in range(sweep.halving.rungs))
        if sweep.trials < least:
            raise UserError(
                f"halving={sweep.halving.text} needs {least} trials or more for one of the full "
                f"limit, and trials={sweep.trials}"
            )


def warnings_of(sweep: Sweep) -> list[str]:
    """What a person should know before a sweep starts, a line each."""
    lines = []
    config = sweep.config()
    limits = {key for key in sweep.space if key.removeprefix("train.") in LIMITS}
    if "train.max_seconds" in limits or (config.train.max_seconds and not limits):
        lines.append(
            "train.max_seconds: how far a trial gets in that time depends on this machine and on "
            "what else runs on it, so that another machine gives other trials; train.max_steps or "
            "train.max_tokens gives the same ones"
        )
    return lines
