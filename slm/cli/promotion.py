"""The commands of the registry: its versions, and which of them is the champion."""

from typing import Annotated

import typer

from slm.cli.options import AsJson, console, display_for, show, show_wide, suggest
from slm.figures import date


def models(as_json: AsJson = False) -> None:
    """List the registered model versions.

    Example: slm models
    """
    from slm.cli import tables
    from slm.registry.versions import list_versions

    versions = [version.facts() for version in list_versions()]
    if as_json:
        show({"versions": versions}, as_json)
        return
    names = ["name", "aliases", "val_bpb", "benchmarks", "decision", "registered", "run"]
    rows = [
        [v["name"], ", ".join(v["aliases"]), v["val_bpb"], tables.accuracies(v["benchmarks"]),
         v["decision"], date(v["registered"]), v["run"]]
        for v in versions
    ]  # fmt: skip
    if not any(v["benchmarks"] for v in versions):
        at = names.index("benchmarks")
        for row in (names, *rows):
            del row[at]
    none = "no versions yet: `slm register RUN` makes one"
    show_wide(tables.listing(names, rows) if rows else none)
    if versions:
        suggest(as_json, f"slm lineage {versions[0]['name']}")


def promote(
    version: Annotated[
        str | None,
        typer.Argument(
            help="NAME@challenger, models:/NAME/VERSION, a model's name, or a run. Default: the "
            "challenger of the only model."
        ),
    ] = None,
    force: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="Promote whatever the gate decides; the reason is recorded."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Assess a version against the champion; it becomes champion only where it is better.

    Example: slm promote models:/slm@challenger
    """
    import slm.registry.gate

    with display_for(as_json) as display, display.progress("promote") as progress:
        decision = slm.registry.gate.promote(version, force=force, progress=progress)
    if as_json:
        show(decision.model_dump(mode="json"), as_json)
    else:
        from rich.markdown import Markdown

        console().print(Markdown(slm.registry.gate.describe(decision)))
    promoted = decision.decision == "promoted"
    suggest(as_json, f"slm sample {decision.uri}" if promoted else f"slm lineage {decision.uri}")
    raise typer.Exit(0 if promoted else 1)


def rollback(
    model: Annotated[
        str | None,
        typer.Argument(help="The model's name in the registry. Default: the only one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore the previous champion.

    Example: slm rollback slm
    """
    import slm.registry.gate

    name, champion, left = slm.registry.gate.rollback(model)
    show({"model": name, "champion": champion, "left": left}, as_json)
    suggest(as_json, "slm models")
