"""`slm ladder`: small models of several sizes, and the best size for a budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.completion import recipe_names
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
from slm.errors import UserError
from slm.storage import write_file

if TYPE_CHECKING:
    from rich.table import Table

    from slm.sizing.result import LadderResult

DRAWN = (".svg", ".html")


RecipeOrSweep = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|SWEEP",
        autocompletion=recipe_names,
        help="A recipe of pipelines.yaml; or a sweep over `size` and train.max_tokens or "
        "train.max_seconds, which has sizes, budgets and seeds of its own.",
    ),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,…",
        help="What each training may take: 10s,30s,2min (seconds of this machine), 1e15,1e16 "
        "(FLOPs) or 2M,8M,32M (tokens).",
    ),
]
Sizes = Annotated[
    str, typer.Option(metavar="A,B,…", help="Sizes, as the setting `size` takes them.")
]
Seeds = Annotated[
    int, typer.Option(min=1, help="Trainings of each size and budget, by seeds of their own.")
]
Spend = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="A,B,…",
        help="Budgets to find the best size for, such as 300s or 1e17; by default the recipe's "
        "limit in seconds, else 300s.",
    ),
]
SweepName = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the sweep's folder.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Trainings at a time; seconds are those of one alone.")
]
Draw = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the drawing (.svg) or the page (.html) here too."),
]


def ladder(
    recipe: RecipeOrSweep,
    budgets: Budgets = None,
    sizes: Sizes = "0.3M,1M,3M,10M",
    seeds: Seeds = 2,
    spend: Spend = None,
    settings: Settings = None,
    name: SweepName = None,
    workers: Workers = 1,
    draw: Draw = None,
    as_json: AsJson = False,
) -> None:
    """Train small models of several sizes, fit what they show, and find the best size for a budget.

    Each training has a whole schedule. Killed anywhere, it resumes; what is complete is reused.

    Example: slm ladder quickstart --budgets 1M,4M,16M --for 300s
    """
    if draw is not None:
        check_drawing(draw)
    from slm.cli.sweep import line
    from slm.orchestration import ladder_outline
    from slm.sizing.budgets import parse_budgets

    asked = parse_budgets(spend, "--for", mixed=True) if spend else None
    chosen = [size.strip() for size in sizes.split(",") if size.strip()]
    made, sweeps = ladder_outline.plan_ladder(
        recipe, budgets, chosen, seeds, overrides(settings), name
    )
    with display_for(as_json) as display:
        result = ladder_outline.climb(
            made, sweeps, asked, workers=workers, on_trial=lambda trial: display.write(line(trial))
        )
    folder = Path(result.sweeps[0])
    page = folder / ladder_outline.PAGE
    if draw is not None:
        source = page if draw.suffix == ".html" else folder / ladder_outline.PICTURE
        write_file(draw, source.read_bytes())
    if as_json:
        show({**ladder_outline.as_json(result), "page": str(page)}, as_json)
        return
    show_ladder(result, page)


def check_drawing(draw: Path) -> None:
    """Raises UserError where no drawing can be written to this path."""
    if draw.suffix not in DRAWN:
        raise UserError(f"--draw {draw}: give a file that ends in .svg or .html")
    if not draw.parent.is_dir():
        raise UserError(f"--draw {draw}: there is no folder {draw.parent}")


def show_ladder(result: "LadderResult", page: Path) -> None:
    """Print the runs, what the law is, and the best size of the first budget."""
    from slm.sizing.sentences import sentences

    show_wide(table(result))
    show_line("")
    for sentence in sentences(result):
        show_line(sentence)
    show_line(f"page      {page}")
    best = result.answers[0].best
    suggest(False, f"slm plan {result.recipe} --set size={best.shape.size}")


def table(result: "LadderResult") -> "Table":
    """The runs, each with how far it is from the law."""
    import math

    from slm.cli import tables
    from slm.figures import count

    rows = [
        (
            rung.size,
            rung.budget.text,
            str(rung.seed),
            f"{rung.shape.n_layer} × {rung.shape.n_embd}",
            count(rung.shape.parameters["total"]),
            count(rung.tokens),
            f"{rung.epochs:.2f}",
            count(rung.flops, "FLOP"),
            rung.val_bpb,
            f"{100 * math.expm1(residual):+.2f} %",
            rung.run,
        )
        for rung, residual in zip(result.rungs, result.fit.residuals, strict=True)
    ]
    names = (
        "size", "budget", "seed", "layers × width", "parameters", "tokens", "epochs", "compute",
        "val_bpb", "from the law", "run",
    )  # fmt: skip
    return tables.listing(names, rows)
