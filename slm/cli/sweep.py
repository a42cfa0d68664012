"""The command `slm sweep`: many trials of a recipe, over a space of its settings."""

import shlex
from typing import Annotated

import typer
from rich.table import Table

from slm.cli.completion import assignments, recipe_and_sweep_names
from slm.cli.options import (
    AsJson,
    Settings,
    display_for,
    overrides,
    show,
    show_line,
    show_wide,
    suggest,
)
from slm.orchestration.display import shorten
from slm.sweeps.records import RankCorrelation, SweepResult, Trial
from slm.sweeps.space import parse_space

MAX_SHOWN = 10  # trials in the table


def sweep(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SWEEP",
            help="A recipe, with --space; or a name under `sweeps:` in pipelines.yaml.",
            autocompletion=recipe_and_sweep_names,
        ),
    ],
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            metavar="KEY=VALUES",
            help="A setting and its values: choices 2,4,6 or adamw,muon; a range 0:0.2, int:2:8, "
            "log:1e-3:1e-2 or log:int:16:256. May be given several times. Conditions are written "
            "in pipelines.yaml.",
            autocompletion=assignments,
        ),
    ] = None,
    settings: Settings = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials in all, 20 by default, of a grid all; a larger number continues the same "
            "sweep.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials that are proposed from the same results, 4 by default; at most so many "
            "can run at a time.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="random|tpe|grid",
            help="random, the default: a scrambled Sobol sequence; tpe: Optuna's, from the results "
            "of earlier batches (the extra sweep); grid: every combination.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings per trial, by seeds of their own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the proposals.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="No new batch begins once the trials have taken so much training: 90s, 30m, 2h, "
            "'1e9 tokens' or '40 trials'. Their recorded seconds are added up, so that it is the "
            "same after a restart.",
        ),
    ] = None,
    halving: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR[:RUNGS]",
            help="Try settings with a FACTOR times shorter limit, and train the best of them again "
            "with the full one. Each is a run of its own with its whole schedule: the early losses "
            "of a long run, under a learning rate that is still to fall, do not predict its last.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Trainings at a time; the trials are the same.")
    ] = 1,
    label: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the sweep's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe with many settings and find the best; killed anywhere, it resumes exactly.

    A limit in seconds depends on the speed of the machine: with train.max_steps or train.max_tokens
    any machine gives the same trials.

    Example: slm sweep quickstart --space train.learning_rate=log:1e-3:1e-2 --trials 12
    """
    from slm.orchestration import sweep_outline
    from slm.sweeps.folder import SweepFolder

    fields = {
        "trials": trials, "batch": batch, "sampler": sampler, "seeds": seeds, "seed": seed,
        "budget": budget, "halving": halving, "name": label,
    }  # fmt: skip
    given = overrides(settings)
    asked = sweep_outline.asked(
        name, parse_space(space) if space else None, overrides=given or None, **fields
    )
    with display_for(as_json) as display:
        asked = sweep_outline.with_inputs(asked)
        folder = SweepFolder.of(asked)
        result = sweep_outline.carry_out(
            asked, workers=workers, on_trial=lambda trial: display.write(line(trial))
        )
    facts = sweep_outline.summary(folder, result)
    if as_json:
        show(facts, as_json)
        return
    show_wide(best_table(result))
    for correlation in result.correlations:
        show_line(sentence(correlation))
    show_line(f"sweep     {shorten(folder.path)}")
    if winner := result.winner:
        changes = [f"{key}={value}" for key, value in {**given, **winner.overrides}.items()]
        words = shlex.join(word for change in changes for word in ("--set", change))
        suggest(
            as_json,
            f"slm report {winner.seeds[0].run} --open",
            f"slm run {asked.recipe} {words}  # the best, to the registry",
        )


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


def best_table(result: SweepResult) -> Table:
    """The best trials of the longest limit, with all their settings."""
    table = Table(title_justify="left")
    ranked = result.ranked[:MAX_SHOWN]
    keys = list(dict.fromkeys(key for trial in ranked for key in trial.values))
    for name in ("trial", "val_bpb", *keys, "seconds", "run"):
        table.add_column(name, no_wrap=name in ("trial", "val_bpb", "run"))
    for trial in ranked:
        values = ("" if key not in trial.values else str(trial.values[key]) for key in keys)
        table.add_row(
            str(trial.number), f"{trial.val_bpb:.4f}", *values, f"{trial.seconds:.1f}",
            trial.seeds[0].run,
        )  # fmt: skip
    return table


def sentence(correlation: RankCorrelation) -> str:
    """How far the order of a shorter limit is that of the next."""
    rungs = f"rungs {correlation.rung} and {correlation.rung + 1}"
    if correlation.spearman is None:
        return f"{rungs}: too few trials of both for a rank correlation ({correlation.trials})"
    return (
        f"{rungs}: rank correlation {correlation.spearman:.2f} (Spearman), of the "
        f"{correlation.trials} best of the shorter limit"
    )
