"""What a ladder shows: its rungs, the law that fits them, and the best size for a budget."""

from collections.abc import Iterable, Sequence

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.machine import cpu_name
from slm.recipes import load_recipe
from slm.records import Frozen, Run
from slm.run_folder import DataRoot
from slm.size import MIN_SIZE
from slm.sizing.best import Best, Shape, Speeds, best_shape, predicted
from slm.sizing.budgets import Budget
from slm.sizing.fit import Fit, fit
from slm.sizing.ladder import Ladder
from slm.sizing.law import Interval, Point, interval
from slm.sweeps.definition import Sweep
from slm.sweeps.records import SeedRun, Trial
from slm.training.needs import measure

OWN = "own"  # in place of a size: the recipe's own model
FURTHER = 10  # times the budget that is looked ahead
SHAPES = 48  # sizes that are considered for a budget
REACH = (0.5, 16.0)  # times the smallest and the largest size of the ladder
CHECK_RESAMPLES = 50


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
    epochs: float
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
        unique_tokens=shards.trained_on.tokens,
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
        size = size_text(low * (high / low) ** (step / (SHAPES - 1)))
        shape = shape_of(ladder.config(size), size)
        shapes.setdefault((shape.n_layer, shape.n_embd), shape)
    with_speeds = [
        shape.model_copy(update={"tok_per_sec": speeds(shape.flops_per_token) if speeds else None})
        for shape in shapes.values()
    ]
    return sorted(with_speeds, key=lambda shape: shape.parameters["total"])


def size_text(parameters: float) -> str:
    """A size to two digits, as the dial takes it: 30K, 1.2M, 110M."""
    rounded = float(f"{parameters:.2g}")
    unit, letter = next((u, x) for u, x in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if rounded >= u)
    return f"{rounded / unit:g}{letter}"


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
        epochs=tokens / unique,
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
