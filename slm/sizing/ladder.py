"""A ladder: small models of several sizes, each trained on several budgets, with several seeds.

Each rung is a whole training with a schedule of its own, so that its score is one that a longer
training of another size can be compared with. A ladder is a sweep over `size` and the training's
limit, and is resumed and kept as one. A budget in FLOPs is another number of tokens at each size:
such a ladder is a sweep for each size.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slm.config import LIMITS, PipelineConfig
from slm.errors import UserError, listing
from slm.machine import cpu_name
from slm.recipes import load_recipe
from slm.records import Frozen, Run
from slm.run_folder import DataRoot
from slm.size import DIALS, MIN_SIZE
from slm.sizing.best import Best, Shape, Speeds, best_shape, predicted
from slm.sizing.budgets import Budget
from slm.sizing.fit import Fit, Interval, Point, fit, interval
from slm.sweeps.definition import Sweep, define_sweep
from slm.sweeps.records import SeedRun, Trial
from slm.training.needs import measure

OWN = "own"  # in place of a size: the recipe's own model
SIZES = ("0.3M", "1M", "3M", "10M")
SEEDS = 2
FURTHER = 10  # times the budget that is looked ahead
SHAPES = 48  # sizes that are considered for a budget
REACH = (0.5, 16.0)  # times the smallest and the largest size of the ladder
CHECK_RESAMPLES = 100


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


# ---- what came of it --------------------------------------------------------------------------


class Rung(Frozen):
    """One training of a ladder, with the figures that are fitted."""

    size: str
    budget: Budget
    seed: int
    run: str
    shape: Shape  # its speed is None where it was trained on another machine
    tokens: int
    unique_tokens: int
    seconds: float
    val_bpb: float

    @property
    def flops(self) -> float:
        return self.tokens * self.shape.flops_per_token

    @property
    def epochs(self) -> float:
        return self.tokens / self.unique_tokens

    @property
    def point(self) -> Point:
        return Point(
            cell=f"{self.size}, {self.budget.text}",
            parameters=self.shape.parameters,
            tokens=self.tokens,
            unique_tokens=self.unique_tokens,
            seed=self.seed,
            bpb=self.val_bpb,
        )


class Own(Frozen):
    """The recipe's own size at the budget of an answer."""

    shape: Shape
    bpb: Interval  # of a run
    behind: Interval  # its predicted bits per byte less those of the best size


class Answer(Frozen):
    """The best size for a budget, and for ten times as much."""

    best: Best
    further: Best
    own: Own | None  # None: the recipe's model is not of its sizes' vocabulary and context


class Check(Frozen):
    """The law of all but the largest budget, held against the runs of the largest."""

    runs: int
    inside: int  # of them, in the band of a run
    largest_error: float  # of predicted over measured bits per byte, less 1
    factor: float  # their compute over that of the largest run that was fitted


class LadderResult(Frozen):
    """What a ladder shows."""

    name: str
    recipe: str
    sweeps: tuple[str, ...]  # folders
    rungs: tuple[Rung, ...]
    failed: tuple[str, ...]  # what failed, and why
    fit: Fit
    check: Check | None  # None of fewer than three budgets
    shapes: tuple[Shape, ...]  # that were considered, from the smallest to the largest
    answers: tuple[Answer, ...]

    @property
    def unique_tokens(self) -> int:
        return self.rungs[0].unique_tokens

    @property
    def max_flops(self) -> float:
        return max(rung.flops for rung in self.rungs)


def shape_of(config: PipelineConfig, size: str, speed: float | None = None) -> Shape:
    """The shape of a config's model; nothing is allocated."""
    needs, model = measure(config), config.model
    return Shape(
        size=size,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        parameters={"non-embedding": needs.non_embedding, "total": needs.parameters},
        flops_per_token=needs.flops_per_token,
        tok_per_sec=speed,
    )


def rungs_of(sweep: Sweep, trials: Iterable[Trial], root: DataRoot) -> tuple[list[Rung], list[str]]:
    """The finished trainings of a sweep of a ladder, and a line for each that failed.

    Raises UserError where their shards are gone.
    """
    rungs, failed = [], []
    for trial in trials:
        for seed in trial.seeds:
            if seed.state == "failed":
                failed.append(f"size {trial.values['size']}, seed {seed.seed}: {seed.reason}")
            else:
                rungs.append(_rung(sweep, trial, seed, root))
    return rungs, failed


def _rung(sweep: Sweep, trial: Trial, seed: SeedRun, root: DataRoot) -> Rung:
    config, size = sweep.config(trial.overrides), str(trial.values["size"])
    shards = root.shards(seed.shards_key)
    run = root.named_run(seed.run).record
    if shards is None or seed.val_bpb is None:
        raise UserError(
            f"the shards of {seed.run} are gone: `slm encode {sweep.recipe}` rebuilds them"
        )
    return Rung(
        size=size,
        budget=_budget(config),
        seed=seed.seed,
        run=seed.run,
        shape=shape_of(config, size, _speed(config, run) if run else None),
        tokens=seed.tokens,
        unique_tokens=shards.splits["train"].tokens,
        seconds=seed.seconds,
        val_bpb=seed.val_bpb,
    )


def _budget(config: PipelineConfig) -> Budget:
    """What a config's limit is."""
    if seconds := config.train.max_seconds:
        return Budget(kind="seconds", amount=seconds)
    assert config.train.max_tokens
    return Budget(kind="tokens", amount=config.train.max_tokens)


def _speed(config: PipelineConfig, run: Run) -> float | None:
    """Tokens/s of a run, its evaluations included where its limit is in seconds.

    None where it was trained on another machine than this one.
    """
    if run.environment.get("cpu") != cpu_name():
        return None
    if run.environment.get("gpu"):
        from slm.training.provenance import environment

        if environment()["gpu"] != run.environment["gpu"]:
            return None
    limit = config.train.max_seconds
    return run.tokens / max(limit, run.seconds) if limit else run.tok_per_sec


def conclude(
    ladder: Ladder,
    rungs: Sequence[Rung],
    failed: Sequence[str],
    sweeps: Sequence[str],
    asked: Sequence[Budget],
    speeds: Speeds | None = None,
) -> LadderResult:
    """Fit the rungs, and answer what was asked.

    `speeds`: None: of the rungs themselves, as far as they were trained on this machine.
    """
    fitted = fit([rung.point for rung in rungs])
    speeds = speeds or speeds_of(rungs)
    shapes = considered(ladder, rungs, speeds)
    unique, most = rungs[0].unique_tokens, max(rung.flops for rung in rungs)
    own = own_shape(ladder, speeds)

    def best(budget: Budget) -> Best:
        return best_shape(fitted, shapes, budget, unique_tokens=unique, max_flops=most)

    answers = []
    for budget in asked:
        nearest = best(budget)
        answers.append(
            Answer(
                best=nearest,
                further=best(budget.times(FURTHER)),
                own=own_at(fitted, own, nearest, unique) if own else None,
            )
        )
    return LadderResult(
        name=ladder.name,
        recipe=ladder.recipe,
        sweeps=tuple(sweeps),
        rungs=tuple(rungs),
        failed=tuple(failed),
        fit=fitted,
        check=hold_out(rungs),
        shapes=tuple(shapes),
        answers=tuple(answers),
    )


def speeds_of(rungs: Sequence[Rung]) -> Speeds:
    """Of the longest training of each size on this machine."""
    longest: dict[str, int] = {}
    for rung in rungs:
        longest[rung.size] = max(longest.get(rung.size, 0), rung.tokens)
    return Speeds(
        [
            (rung.shape.flops_per_token, rung.shape.tok_per_sec)
            for rung in rungs
            if rung.shape.tok_per_sec and 2 * rung.tokens > longest[rung.size]
        ]
    )


def considered(ladder: Ladder, rungs: Sequence[Rung], speeds: Speeds) -> list[Shape]:
    """Shapes that the dial gives, of sizes around those of the ladder, each once."""
    inside = [rung.shape.parameters["non-embedding"] for rung in rungs]
    low, high = max(MIN_SIZE, REACH[0] * min(inside)), REACH[1] * max(inside)
    shapes = {(rung.shape.n_layer, rung.shape.n_embd): rung.shape for rung in rungs}
    for step in range(SHAPES):
        size = f"{low * (high / low) ** (step / (SHAPES - 1)) / 1e6:.2g}M"
        shape = shape_of(ladder.config(size), size)
        shapes.setdefault((shape.n_layer, shape.n_embd), shape)
    with_speeds = [
        shape.model_copy(update={"tok_per_sec": speeds(shape.flops_per_token) if speeds else None})
        for shape in shapes.values()
    ]
    return sorted(with_speeds, key=lambda shape: shape.parameters["total"])


def own_shape(ladder: Ladder, speeds: Speeds) -> Shape | None:
    """The recipe's own model; None where another model than the ladder's."""
    config = load_recipe(ladder.recipe, ladder.overrides)  # with the recipe's own limit
    if config.model.seq_len != ladder.config(ladder.sizes[0]).model.seq_len:
        return None
    shape = shape_of(config, OWN)
    speed = speeds(shape.flops_per_token) if speeds else None
    return shape.model_copy(update={"tok_per_sec": speed})


def own_at(fitted: Fit, own: Shape, best: Best, unique: float) -> Own:
    tokens = own.tokens(best.budget)
    ours = predicted(fitted, [own], [tokens], unique)[:, 0]
    theirs = predicted(fitted, [best.shape], [best.tokens], unique)[:, 0]
    behind = ours - theirs
    return Own(
        shape=own,
        bpb=fitted.predict(own.parameters[fitted.counted], tokens, unique),
        behind=interval(float(behind[0]), behind[1:]),
    )


def hold_out(rungs: Sequence[Rung]) -> Check | None:
    """How well the runs of smaller budgets predict those of the largest."""
    largest = max(rung.budget.amount for rung in rungs)
    kept = [rung for rung in rungs if rung.budget.amount < largest]
    tested = [rung for rung in rungs if rung.budget.amount == largest]
    if len({rung.budget for rung in kept}) < 2 or len({rung.size for rung in kept}) < 2:
        return None
    law = fit([rung.point for rung in kept], resamples=CHECK_RESAMPLES)
    bands = [
        law.predict(rung.shape.parameters[law.counted], rung.tokens, rung.unique_tokens)
        for rung in tested
    ]
    pairs = list(zip(bands, tested, strict=True))
    return Check(
        runs=len(tested),
        inside=sum(band.low <= rung.val_bpb <= band.high for band, rung in pairs),
        largest_error=max((band.value / rung.val_bpb - 1 for band, rung in pairs), key=abs),
        factor=max(rung.flops for rung in tested) / max(rung.flops for rung in kept),
    )
