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
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slm import keys
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.recipes import load_recipe
from slm.records import Frozen
from slm.storage import sha256_json
from slm.sweeps.halving import Halving
from slm.sweeps.space import Dimension

Sampler = Literal["tpe", "random", "grid"]
SWEEP_VERSION = 1
"""Goes up whenever the same sweep and results give other proposals."""

_STAGES = ("download", "encode", "train", "select", "evaluate")  # that a trial's score depends on
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
    trials: int = 20
    batch: int = 4  # trials whose proposals know of the same results
    seeds: int = 1  # trainings of each trial, with the recipe's train.seed + 0, 1, …
    seed: int = 7  # of the proposals
    budget: str | None = None
    halving: Halving | None = None
    inputs: str = ""  # hash of what the config only names: files, commits, weights; empty: nothing

    def config(self, overrides: Mapping[str, Any] | None = None) -> PipelineConfig:
        """The recipe's config with the sweep's own overrides and those of a trial."""
        return load_recipe(self.recipe, {**self.overrides, **(overrides or {})})

    @property
    def key(self) -> str:
        """The hash of all that its proposals and their results depend on.

        The number of trials, the budget and the workers are not in it: more continue the sweep.
        """
        config = self.config()
        fields = {stage: keys.stage_fields(stage, config) for stage in _STAGES}
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

    def seed_of(self, config: PipelineConfig, index: int) -> int:
        """`train.seed` of a trial's training, by its index among the seeds."""
        return config.train.seed + index


def load_sweep(name: str, *, path: Path | None = None) -> Sweep:
    """A sweep of `sweeps:` in `pipelines.yaml`, checked.

    Args:
        path: the project's `pipelines.yaml`; None: that of the working folder.

    Raises UserError naming the nearest sweep, or what is wrong in it.
    """
    raise NotImplementedError


def define_sweep(recipe: str, space: Mapping[str, Any], **fields: Any) -> Sweep:
    """A sweep from a recipe and a space, whose dimensions may be texts. Raises UserError."""
    raise NotImplementedError


def sweep_names(path: Path | None = None) -> list[str]:
    """The names under `sweeps:`, the project's own and those that are shipped."""
    raise NotImplementedError
