"""The commands that look back: what a model was made of, made again, compared, and what may go."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from slm.cli.options import AsJson, RunName, display_for, show
from slm.config import data_root
from slm.errors import UserError
from slm.run_folder import RunFolder

if TYPE_CHECKING:
    from slm.history.lineage import Lineage

VERDICTS = {"bit-identical": 0, "diverged": 1, "within tolerance": 3, "cannot": 4}  # exit codes
WIDTH = 240  # characters of a line that is not for a terminal

ModelName = Annotated[
    str,
    typer.Argument(metavar="VERSION|RUN", help="models:/NAME@ALIAS, a run's folder or its name."),
]


def lineage(model: ModelName, as_json: AsJson = False) -> None:
    """Show what a model was made of, and check every link against what is there now."""
    from slm.cli import drawings

    chain, _ = _look_up(model)
    if as_json:
        links = [link.model_dump(mode="json") for link in chain.links]
        broken = [link.name for link in chain.broken]
        show({"name": chain.name, "links": links, "broken": broken}, as_json)
    else:
        _console().print(drawings.lineage(chain))


def reproduce(
    model: ModelName,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was rebuilt.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model again from its chain alone, and compare every hash.

    Exits 0 for bit-identical, 3 within tolerance, 1 diverged, 4 cannot be made again.
    """
    import slm.reproduction.reproduce

    with display_for(as_json) as display:
        chain, run = _look_up(model)
        with display.progress("reproduce") as progress:
            found = slm.reproduction.reproduce.reproduce(
                run, chain=chain, keep=keep, progress=progress
            )
    result = found.model_dump(mode="json")
    if as_json:
        show(result, as_json)
    else:
        _print(found.sentence)
        compared = f"{len(found.compared)} hashes and figures"
        show({"level": found.level, "compared": compared, "kept in": found.folder or "–"}, False)
        for note in found.notes:
            _print(f"note: {note}")
    raise typer.Exit(VERDICTS[found.verdict])


def _look_up(model: str) -> "tuple[Lineage, RunFolder]":
    """The checked chain of a version or a run, and the run's folder, which may be gone."""
    from slm.cli.runs import run_folder
    from slm.history.lineage import lineage

    if model.startswith("models:"):
        from slm.registry.chain import version_lineage
        from slm.registry.versions import version_run

        return version_lineage(model), version_run(model)
    run = run_folder(model)
    return lineage(run), run


# ---- side by side -----------------------------------------------------------------------------


def compare(a: RunName, b: RunName, as_json: AsJson = False) -> None:
    """Compare two runs: settings, curves, bits a byte with their interval, samples."""
    import slm.history.compare
    from slm.cli import drawings
    from slm.cli.runs import run_folder

    found = slm.history.compare.compare(run_folder(a), run_folder(b))
    if as_json:
        show(found.model_dump(mode="json"), as_json)
    else:
        Console().print(drawings.comparison(found))


def runs(as_json: AsJson = False) -> None:
    """List the runs."""
    from slm.cli import drawings
    from slm.history.runs import list_runs

    found = list_runs(data_root())
    if as_json:
        show({"runs": [facts.model_dump() for facts in found]}, as_json)
        return
    names = ("name", "state", "started", "step", "val_bpb", "seconds")
    cells = (
        (f.run, f.state, _date(f.started), f.step, f.val_bpb, f.seconds and round(f.seconds))
        for f in found
    )
    _table(drawings.listing(names, cells), bool(found), "no runs yet: `slm run` makes one")


def models(as_json: AsJson = False) -> None:
    """List the registered model versions."""
    from slm.cli import drawings
    from slm.registry.versions import list_versions

    found = [version.facts() for version in list_versions()]
    if as_json:
        show({"versions": found}, as_json)
        return
    names = ("name", "aliases", "val_bpb", "verdict", "registered", "run")
    cells = (
        (f["name"], ", ".join(f["aliases"]), f["val_bpb"], f["decision"], _date(f["registered"]),
         f["run"])
        for f in found
    )  # fmt: skip
    _table(
        drawings.listing(names, cells), bool(found), "no versions yet: `slm register RUN` makes one"
    )


# ---- what may go ------------------------------------------------------------------------------


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what may go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_runs: Annotated[
        int, typer.Option(help="Keep so many runs that no version was made from.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Remove what no version and no recent run needs, and what interruptions left."""
    from slm import retention
    from slm.registry.versions import list_versions

    if keep_runs < 0:
        raise UserError(f"--keep-runs {keep_runs} is below 0")
    if as_json and not (dry_run or yes):
        raise UserError("--json cannot ask: add --dry-run or --yes")
    root = data_root()
    registered = {version.tags.get("run", "") for version in list_versions(root)}
    found = retention.survey(root, registered, keep_runs=keep_runs)
    if not as_json:
        _print_survey(found, root)
    wanted = bool(found.going) and not dry_run and (yes or typer.confirm("Remove these?"))
    freed = retention.collect(found) if wanted else 0
    if as_json:
        show({**found.model_dump(mode="json"), "removed": wanted, "freed": freed}, as_json)
    elif wanted:
        _print("removed")


def _print_survey(found: Any, root: Path) -> None:
    from slm.cli import drawings

    for title, items in (("stays", found.staying), ("may go", found.going)):
        cells = ((str(i.path.relative_to(root)), drawings.size(i.bytes), i.reason) for i in items)
        _table(drawings.listing(("name", "size", title), cells), bool(items), f"nothing {title}")
        _print("")
    _print(f"{drawings.size(found.bytes)} may go")


# ---- showing ----------------------------------------------------------------------------------


def _print(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _table(table: Any, filled: bool, otherwise: str) -> None:
    _console().print(table if filled else otherwise)


def _console() -> Console:
    """As wide as the terminal; into a file or a pipe, wide enough that no name is broken."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH, soft_wrap=True)


def _date(moment: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else None
