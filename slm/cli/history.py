"""The commands that look back: runs, what a model was made of, reproduced, compared, cleaned up."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.completion import recipe_names, run_names
from slm.cli.options import (
    REFERENCE,
    AsJson,
    display_for,
    show,
    show_line,
    show_wide,
    suggest,
    width,
)
from slm.config import data_root
from slm.errors import SlmError, UserError
from slm.figures import size
from slm.history.runs import Order, list_runs
from slm.run_folder import DataRoot

if TYPE_CHECKING:
    from slm.retention import Retention

EXIT_CODES = {"bit-identical": 0, "diverged": 1, "within tolerance": 3, "cannot": 4}

ModelName = Annotated[
    str,
    typer.Argument(metavar="VERSION|RUN", help=REFERENCE),
]


def runs(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            help="Only runs of such a name: 'quickstart-*', or its beginning.",
            autocompletion=run_names,
        ),
    ] = "*",
    recipe: Annotated[
        str | None,
        typer.Option(help="Only runs of this recipe.", autocompletion=recipe_names),
    ] = None,
    order: Annotated[
        Order, typer.Option("--sort", help="By what: the newest, most or best first.")
    ] = "started",
    as_json: AsJson = False,
) -> None:
    """List the runs, with the settings in which those of a recipe differ.

    Example: slm runs 'quickstart-*' --sort val_bpb
    """
    from slm.cli import tables

    sweeps = _sweeps_of_runs()
    facts = [
        each.model_copy(update={"sweep": sweeps.get(each.run)})
        for each in list_runs(data_root(), pattern, recipe=recipe, order=order)
    ]
    if as_json:
        show({"runs": [run.model_dump() for run in facts]}, as_json)
        return
    show_wide(tables.runs(facts, width()) if facts else _no_runs(pattern, recipe))
    if facts:
        show_line("val_bpb: of the evaluation; in training (…): the last one, on a slice of val")
        newest, *others = facts
        finished = newest.state == "finished"
        first = f"slm report {newest.run} --open" if finished else f"slm train {newest.run}"
        compared = f"slm compare {others[0].run} {newest.run}" if others else "slm compare RUN RUN"
        suggest(as_json, first, compared)


def _sweeps_of_runs() -> dict[str, str]:
    """Of each run that is of a trial, the name of its sweep; a sweep that is damaged has none."""
    from slm.sweeps.folder import SweepFolder

    sweeps: dict[str, str] = {}
    for path in DataRoot().sweeps():
        with suppress(SlmError):
            for run in SweepFolder(path).runs:
                sweeps.setdefault(run, path.name)
    return sweeps


def _no_runs(pattern: str, recipe: str | None) -> str:
    if pattern != "*" or recipe:
        return "no such run: `slm runs` lists all"
    return "no runs yet: `slm run` makes one"


def lineage(model: ModelName, as_json: AsJson = False) -> None:
    """Show what a model was made of, and check every link against what is on disk now.

    Example: slm lineage models:/slm@champion
    """
    from slm.cli import tables
    from slm.registry.lineage import chain_and_run

    chain, _ = chain_and_run(model)
    if as_json:
        links = [link.model_dump(mode="json") for link in chain.links]
        broken = [link.name for link in chain.broken]
        show({"name": chain.name, "links": links, "broken": broken}, as_json)
    else:
        show_wide(tables.lineage(chain))
    suggest(as_json, f"slm reproduce {model}")


def reproduce(
    model: ModelName,
    keep: Annotated[bool, typer.Option("--keep", help="Keep what was rebuilt.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild a model from its chain alone, and compare every hash and every recorded figure.

    Exits 0 for bit-identical, 3 within tolerance, 1 diverged, 4 cannot be reproduced.

    Example: slm reproduce models:/slm@champion
    """
    import slm.reproduction.reproduce
    from slm.cli import tables
    from slm.registry.lineage import chain_and_run

    with display_for(as_json) as display:
        chain, run = chain_and_run(model)
        with display.progress("reproduce") as progress:
            reproduction = slm.reproduction.reproduce.reproduce(
                run, chain=chain, keep=keep, progress=progress
            )
    if as_json:
        show(reproduction.model_dump(mode="json"), as_json)
    else:
        show_line(reproduction.sentence)
        if differing := [row for row in reproduction.compared if not row.same]:
            show_wide(tables.differences(differing))
        compared = f"{len(reproduction.compared)} hashes and figures"
        shown = {"level": reproduction.level, "compared": compared, "kept in": reproduction.folder}
        show(shown, as_json)
        for note in reproduction.notes:
            show_line(f"note: {note}")
    suggest(as_json, f"slm lineage {model}")
    raise typer.Exit(EXIT_CODES[reproduction.verdict])


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what can be deleted.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_runs: Annotated[
        int, typer.Option(help="Number of newest runs without a version to keep.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Delete what no version and no recent run needs, and what interruptions left.

    Example: slm gc --dry-run
    """
    from slm import retention
    from slm.registry.register import deleted_notes
    from slm.registry.versions import list_versions

    if keep_runs < 0:
        raise UserError(f"--keep-runs {keep_runs} is below 0")
    if as_json and not (dry_run or yes):
        raise UserError("--json cannot ask: add --dry-run or --yes")
    root = data_root()
    registered = {version.tags.get("run", "") for version in list_versions(root)}
    survey = retention.survey(root, registered, keep_runs=keep_runs, deleted=deleted_notes(root))
    if not as_json:
        _show_survey(survey, root)
    confirmed = bool(survey.going) and not dry_run and (yes or typer.confirm("Delete these?"))
    freed = retention.collect(survey) if confirmed else 0
    if as_json:
        show({**survey.model_dump(mode="json"), "removed": confirmed, "freed": freed}, as_json)
    elif confirmed:
        show_line("deleted")
    if survey.going and dry_run:
        suggest(as_json, "slm gc")


def _show_survey(survey: "Retention", root: Path) -> None:
    from slm.cli import tables

    for title, items in (("is kept", survey.staying), ("can be deleted", survey.going)):
        rows = [(str(i.path.relative_to(root)), size(i.bytes), i.reason) for i in items]
        show_line(f"{title}:" if rows else f"nothing {title}")
        if rows:
            show_wide(tables.listing(("name", "size", "reason"), rows))
        show_line("")
    show_line(f"{size(survey.bytes)} can be deleted")
