"""A ladder as a plain call: `slm.ladder`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm import storage
from slm.config import data_root
from slm.errors import UserError
from slm.orchestration.sweep_outline import carry_out
from slm.recipes import find_recipes, load_recipe
from slm.run_folder import DataRoot
from slm.sizing import picture
from slm.sizing.best import Speeds
from slm.sizing.budgets import Budget, parse_budgets
from slm.sizing.ladder import SEEDS, SIZES, Ladder, define_ladder, ladder_of
from slm.sizing.result import LadderResult, conclude, rungs_of, shape_of, speeds_of
from slm.sweeps.definition import Sweep, load_sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import Trial

FOR_SECONDS = 300.0  # that are asked about where the recipe has no limit in seconds
PAGE, PICTURE, RESULT = "ladder.html", "ladder.svg", "ladder.json"  # in the sweep's folder


def ladder(
    recipe: str,
    budgets: str | None = None,
    *,
    sizes: Sequence[str] = SIZES,
    seeds: int = SEEDS,
    spend: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    workers: int = 1,
) -> LadderResult:
    """Train a ladder, or resume it; fit its law, and say which size is best for a budget.

    >>> slm.ladder("quickstart", "2M,8M,32M", spend="300s").answers[0].best.shape.size

    Args:
        recipe: a recipe; or a sweep that is a ladder, of `sweeps:` or in the data folder, whose
            own budgets, sizes and seeds hold.
        budgets: of each size: seconds, FLOPs or tokens, as of `parse_budgets`.
        sizes: as `size` takes them.
        seeds: trainings of each size and budget.
        spend: the budgets that are asked about; None: the recipe's limit in seconds, else 300 s.
        overrides: settings by dotted key.
        name: of the sweep; None: that of the recipe with `-ladder`.
        workers: trainings that run at a time.
    """
    asked = parse_budgets(spend, "--for", mixed=True) if spend else None
    made, sweeps = plan_ladder(recipe, budgets, sizes, seeds, overrides, name)
    return climb(made, sweeps, asked, workers=workers)


def plan_ladder(
    recipe: str,
    budgets: str | None,
    sizes: Sequence[str],
    seeds: int,
    overrides: Mapping[str, Any] | None,
    name: str | None,
) -> tuple[Ladder, list[Sweep]]:
    """The ladder that was asked for, and the sweeps that train it. Raises UserError."""
    if budgets is not None:
        made = define_ladder(
            recipe, parse_budgets(budgets), sizes=sizes, seeds=seeds, overrides=overrides, name=name
        )
        return made, made.sweeps()
    if recipe in find_recipes():
        raise UserError(
            f"{recipe} is a recipe: give --budgets, such as 10s,30s,90s or 2M,8M,32M (tokens); a "
            "sweep that is a ladder needs none"
        )
    try:
        sweep = SweepFolder.open(recipe, data_root()).sweep
    except UserError:
        sweep = load_sweep(recipe)
    return ladder_of(sweep), [sweep]


def climb(
    made: Ladder,
    sweeps: Sequence[Sweep],
    asked: Sequence[Budget] | None,
    *,
    workers: int = 1,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> LadderResult:
    """Run the sweeps of a ladder, and write what they show into the folder of the first."""
    root = DataRoot()
    rungs, failed, folders = [], [], []
    for sweep in sweeps:
        carried = carry_out(sweep, workers=workers, on_trial=on_trial)
        finished, lines = rungs_of(sweep, carried.trials, root)
        rungs += finished
        failed += lines
        folders.append(str(root.folder("sweeps", carried.name, carried.key)))
    speeds = speeds_of(rungs) or probed_speeds(made, root, rungs[0].run)
    result = conclude(made, rungs, failed, folders, asked or default_spend(made), speeds)
    drawn = picture.compute_plot(result, "flops")
    assert drawn is not None
    for file, text in (
        (PAGE, picture.page(result)),
        (PICTURE, picture.standalone(drawn)),
        (RESULT, storage.to_json(as_json(result), indent=1) + "\n"),
    ):
        storage.write_file(Path(folders[0]) / file, text)
    return result


def default_spend(made: Ladder) -> tuple[Budget, ...]:
    """The recipe's own limit, if it is in seconds, else 300 s."""
    own = load_recipe(made.recipe, made.overrides).train.max_seconds
    return (Budget(kind="seconds", amount=own or FOR_SECONDS),)


def probed_speeds(made: Ladder, root: DataRoot, run: str) -> Speeds:
    """Tokens/s of each size, by a probe: where the runs were trained on another machine."""
    from slm.training.forecast import forecast  # it loads PyTorch

    shards = root.named_run(run).shards
    measured = []
    for size in made.sizes:
        config = made.config(size)
        cost = forecast(config, shards)
        measured.append((shape_of(config, size).flops_per_token, cost.tok_per_sec))
    return Speeds(measured)


def as_json(result: LadderResult) -> dict[str, Any]:
    """A result as JSON values, without what was resampled."""
    return result.model_dump(mode="json", exclude={"fit": {"resampled", "noise"}, "shapes": True})
