"""A ladder: small models of several sizes, each trained on several budgets, with several seeds.

Each rung is a whole training with a schedule of its own, so that its score is one that a longer
training of another size can be compared with. A ladder is a sweep over `size` and the training's
limit, and is resumed and kept as one. A budget in FLOPs is another number of tokens at each size:
such a ladder is a sweep for each size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from slm.config import LIMITS, PipelineConfig
from slm.errors import UserError, listing
from slm.recipes import load_recipe
from slm.records import Frozen
from slm.size import DIALS
from slm.sizing.budgets import Budget
from slm.sweeps.definition import Sweep, define_sweep
from slm.training.needs import measure

SIZES = ("0.3M", "1M", "3M", "10M")
SEEDS = 2


class Ladder(Frozen):
    """What is to be trained; `define_ladder` makes one that is checked."""

    name: str
    recipe: str
    overrides: dict[str, Any]
    sizes: tuple[str, ...]
    budgets: tuple[Budget, ...]
    seeds: int = SEEDS

    def config(self, size: str, budget: Budget | None = None) -> PipelineConfig:
        """The recipe at a size, with a budget as its limit; None: with any."""
        limit = self.limit(size, budget) if budget else {"train.max_steps": 1}
        return load_recipe(self.recipe, {**self.overrides, "size": size, **limit})

    def limit(self, size: str, budget: Budget) -> dict[str, Any]:
        """A budget as the setting that ends a training."""
        if budget.kind == "seconds":
            return {"train.max_seconds": budget.amount}
        if budget.kind == "tokens":
            return {"train.max_tokens": round(budget.amount)}
        cost = measure(self.config(size)).flops_per_token
        return {"train.max_tokens": max(1, round(budget.amount / cost))}

    def sweeps(self) -> list[Sweep]:
        """The sweeps that train it: one, or of budgets in FLOPs one for each size."""
        if self.budgets[0].kind != "flops":
            return [self._sweep(self.name, self.sizes)]
        return [self._sweep(f"{self.name}-{size}", (size,)) for size in self.sizes]

    def _sweep(self, name: str, sizes: Sequence[str]) -> Sweep:
        limits = [self.limit(sizes[0], budget) for budget in self.budgets]
        [setting] = limits[0]
        return define_sweep(
            self.recipe,
            {"size": list(sizes), setting: [limit[setting] for limit in limits]},
            name=name,
            overrides=self.overrides,
            sampler="grid",
            trials=len(sizes) * len(limits),
            batch=len(sizes) * len(limits),
            seeds=self.seeds,
        )


def define_ladder(
    recipe: str,
    budgets: Sequence[Budget],
    *,
    sizes: Sequence[str] = SIZES,
    seeds: int = SEEDS,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Ladder:
    """A ladder whose every rung is a valid training. Raises UserError."""
    for option, values in (("--budgets", [b.text for b in budgets]), ("--sizes", list(sizes))):
        if len(set(values)) < 2:
            raise UserError(
                f"{option} {listing(values)}: a ladder needs at least two, and four sizes by three "
                "budgets to determine both exponents"
            )
    for key in (*DIALS, *(f"train.{limit}" for limit in LIMITS)):
        if key in (overrides or {}):
            raise UserError(f"--set {key}: the sizes and budgets of a ladder set it; leave it out")
    ladder = Ladder(
        name=name or f"{recipe}-ladder",
        recipe=recipe,
        overrides=dict(overrides or {}),
        sizes=tuple(sizes),
        budgets=tuple(budgets),
        seeds=seeds,
    )
    shapes: dict[Any, str] = {}
    for size in sizes:
        config = ladder.config(size, budgets[-1])
        same = shapes.setdefault(config.model, size)
        if same != size:
            raise UserError(f"--sizes: {same} and {size} are the same model; give others")
    return ladder


def ladder_of(sweep: Sweep) -> Ladder:
    """The ladder that a sweep is: a grid over `size` and over `train.max_tokens` or `max_seconds`.

    Raises UserError where it is another sweep.
    """
    limits = {"train.max_tokens": "tokens", "train.max_seconds": "seconds"}
    kinds = [key for key in limits if key in sweep.space]
    size = sweep.space.get("size")
    values = sweep.space[kinds[0]].values if kinds else None
    if size is None or not size.values or len(kinds) != 1 or not values or len(sweep.space) != 2:
        raise UserError(
            f"the sweep {sweep.name} is no ladder: its space must be `size`, and `train.max_tokens`"
            " or `train.max_seconds`, each with two values or more"
        )
    budgets = [Budget(kind=limits[kinds[0]], amount=float(value)) for value in sorted(values)]
    return define_ladder(
        sweep.recipe,
        budgets,
        sizes=[str(value) for value in size.values],
        seeds=sweep.seeds,
        overrides=sweep.overrides,
        name=sweep.name,
    )
