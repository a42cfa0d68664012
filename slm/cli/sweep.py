"""The command `slm sweep`: many trials of a recipe, over a space of its settings."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli import sweep_options
from slm.cli.completion import recipe_and_sweep_names
from slm.cli.options import AsJson, Settings, display_for, overrides, show, show_line, suggest
from slm.cli.sweep_plan import show_sweep_plan
from slm.cli.winner import show_winner
from slm.orchestration.display import shorten
from slm.sweeps.records import RankCorrelation, SweepResult, Trial

if TYPE_CHECKING:
    from slm.sweeps.folder import SweepFolder


def sweep(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SWEEP",
            help="A recipe, with --space; or a name under `sweeps:` in pipelines.yaml.",
            autocompletion=recipe_and_sweep_names,
        ),
    ],
    space: sweep_options.Space = None,
    settings: Settings = None,
    trials: sweep_options.Trials = None,
    batch: sweep_options.Batch = None,
    sampler: sweep_options.Sampler = None,
    seeds: sweep_options.Seeds = None,
    seed: sweep_options.Seed = None,
    budget: sweep_options.Budget = None,
    halving: sweep_options.Halving = None,
    workers: sweep_options.Workers = 1,
    label: sweep_options.Label = None,
    promote: sweep_options.Promote = False,
    dry_run: sweep_options.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe with many settings and find the best; killed anywhere, it resumes exactly.

    A limit in seconds depends on the speed of the machine: with train.max_steps or train.max_tokens
    any machine gives the same trials.

    Example: slm sweep quickstart --space train.learning_rate=log:1e-3:1e-2
    """
    from slm.orchestration import sweep_outline, sweep_winner
    from slm.sweeps.folder import SweepFolder

    fields = {
        "trials": trials, "batch": batch, "sampler": sampler, "seeds": seeds, "seed": seed,
        "budget": budget, "halving": halving, "name": label,
    }  # fmt: skip
    asked = sweep_options.asked(name, space, settings, fields)
    if dry_run:
        from slm.planning.sweep import plan_of_sweep

        show_sweep_plan(plan_of_sweep(asked), as_json)
        return
    with display_for(as_json) as display:
        asked = sweep_outline.with_inputs(asked)
        folder = SweepFolder.of(asked)
        result = sweep_outline.carry_out(
            asked, workers=workers, on_trial=lambda trial: display.write(line(trial))
        )
        promoted = sweep_winner.promote_winner(folder) if promote else None
    if as_json:
        facts = sweep_outline.summary(folder, result)
        show({**facts, "promoted": promoted} if promote else facts, as_json)
        return
    show_result(folder, result)
    if promoted:
        show_line(f"gate      {promotion(promoted)}")
        suggest(as_json, f"slm report {Path(promoted['run']).name} --open")
    elif result.winner:
        suggest_winner(asked.recipe, result.winner, settings)


def suggest_winner(recipe: str, winner: Trial, settings: list[str] | None) -> None:
    """Show the commands that report the best trial, and that take it to the registry."""
    changes = {**overrides(settings), **winner.overrides}
    words = shlex.join(w for k, v in changes.items() for w in ("--set", f"{k}={v}"))
    suggest(
        False,
        f"slm report {winner.seeds[0].run} --open",
        f"slm run {recipe} {words}  # the best, to the registry",
    )


def promotion(promoted: dict[str, Any]) -> str:
    """What the gate made of the winner: `models:/slm/3: refused, +0.0012 bits per byte …`."""
    word = "champion" if promoted["champion"] else "refused"
    text = f"{promoted['version']}: {word}, {promoted['verdict']}"
    if not promoted["distinguishable"]:
        text += (
            "; that the winner is not distinguishable from others as settings does not count there"
        )
    return text


def show_result(folder: "SweepFolder", result: SweepResult) -> None:
    """Print what came of a sweep: its trials, its winner, and how far its rungs agree."""
    from slm.sweeps.winner import choose

    show_winner(folder, choose(folder))
    for correlation in result.correlations:
        show_line(sentence(correlation))
    show_line(f"sweep     {shorten(folder.path)}")


def line(trial: Trial) -> str:
    """A trial in one line, as it ends."""
    values = ", ".join(f"{key}={value}" for key, value in trial.overrides.items())
    if trial.state == "failed":
        return f"trial {trial.number:<4}failed  {values}   {trial.reason}"
    first, word = trial.seeds[0], "reused" if all(s.reused for s in trial.seeds) else "done"
    return (
        f"trial {trial.number:<4}{word:<7} {trial.val_bpb:.4f} bits per byte  {values}   "
        f"{first.run}   {trial.seconds:.1f} s"
    )


def sentence(correlation: RankCorrelation) -> str:
    """How far the order of a shorter limit is that of the next."""
    rungs = f"rungs {correlation.rung} and {correlation.rung + 1}"
    if correlation.spearman is None:
        return f"{rungs}: too few trials of both for a rank correlation ({correlation.trials})"
    return (
        f"{rungs}: rank correlation {correlation.spearman:.2f} (Spearman), of the "
        f"{correlation.trials} best of the shorter limit"
    )
