"""Options of the commands that take a sweep, and the sweep that they mean."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from slm.cli.completion import assignments
from slm.cli.options import overrides
from slm.errors import UserError
from slm.recipes import find_recipes
from slm.run_folder import DataRoot
from slm.sweeps.definition import Sweep, sweep_names
from slm.sweeps.folder import SweepFolder
from slm.sweeps.space import parse_space

CONTINUED = {"trials", "budget"}  # fields that may differ in a sweep that is continued

Space = Annotated[
    list[str] | None,
    typer.Option(
        "--space",
        metavar="KEY=VALUES",
        help="A setting and its values: choices such as 2,4,6 or adamw,muon; a range such as "
        "0:0.2; log:1e-3:1e-2, even in the logarithm. May be given several times. Conditions are "
        "written in pipelines.yaml.",
        autocompletion=assignments,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Trials in all, 20 by default, of a grid all; a larger number continues the same "
        "sweep.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Trials that are proposed from the same results, 4 by default; at most so many "
        "can run at a time.",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        metavar="random|tpe|grid",
        help="random, the default: a scrambled Sobol sequence; tpe: Optuna's, from the results "
        "of earlier batches (the extra sweep); grid: every combination.",
    ),
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="Trainings per trial, by seeds of their own.")
]
Seed = Annotated[int | None, typer.Option(help="Random seed of the proposals.")]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="AMOUNT",
        help="No new batch begins once the trials have taken so much training: 90s, 30m, 2h, "
        "'1e9 tokens' or '40 trials'. Their recorded seconds are added up, so that it is the "
        "same after a restart.",
    ),
]
Halving = Annotated[
    str | None,
    typer.Option(
        metavar="FACTOR[:RUNGS]",
        help="Try settings with a FACTOR times shorter limit, and train the best of them again "
        "with the full one. Each is a run of its own with its whole schedule: the early losses "
        "of a long run, under a learning rate that is still to fall, do not predict its last.",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Trainings at a time; the trials are the same.")]
Label = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the sweep's folder.")
]
Promote = Annotated[
    bool,
    typer.Option(
        "--promote",
        help="Then report and register the best trial, and let the gate decide about it.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what it would do, and do nothing: slm plan.")
]


def asked(
    name: str, space: list[str] | None, settings: list[str] | None, fields: Mapping[str, Any]
) -> Sweep:
    """The sweep of `sweeps:`, or of a recipe with a space, with the options that are given."""
    from slm.orchestration import sweep_outline

    dimensions = parse_space(space) if space else None
    return sweep_outline.asked(name, dimensions, overrides=overrides(settings) or None, **fields)


def find(
    name: str, space: list[str] | None, settings: list[str] | None, fields: Mapping[str, Any]
) -> Sweep | None:
    """The sweep that a name means for `slm plan`; None where it is a recipe, or a run.

    A name is that of a recipe first, unless a space is given; and a sweep in the data folder is
    continued with the settings that it has.

    Raises UserError where options of a sweep are given with a name that is none.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    if space or (name in sweep_names() and name not in find_recipes()):
        return asked(name, space, settings, fields)
    if name not in find_recipes() and name in _folders():
        if settings or set(given) - CONTINUED:
            raise UserError(
                f"{name} is a sweep that was begun, and keeps its settings: leave out all options "
                "but --trials and --budget"
            )
        return SweepFolder.open(name).sweep.model_copy(update=given)
    if given:
        option = next(iter(given)).replace("_", "-")
        raise UserError(
            f"--{option} is of a sweep, and {name} is none: give --space too, such as --space "
            "train.learning_rate=log:1e-3:1e-2"
        )
    return None


def _folders() -> set[str]:
    """How the sweeps of the data folder may be named."""
    return {form for path in DataRoot().sweeps() for form in (path.name, str(path))}
