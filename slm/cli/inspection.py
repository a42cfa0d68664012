"""The commands that look at data, hashes, recipes, settings and benchmarks."""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from slm.cli.completion import (
    benchmark_names,
    recipe_names,
    result_names,
    settings_and_recipes,
    shard_names,
)
from slm.cli.excluded import counts_of_dropped, show_excluded, write_card
from slm.cli.export import verify_published
from slm.cli.options import (
    AsJson,
    Settings,
    command_line,
    console,
    display_for,
    load,
    show,
    show_wide,
    suggest,
)
from slm.config import PIPELINES, checkout, data_root, project_root
from slm.errors import CorruptionError, UserError, unknown
from slm.figures import counted
from slm.machine import available_memory
from slm.orchestration.display import shorten
from slm.recipes import (
    DESCRIPTION,
    Recipe,
    check_recipes,
    describe,
    explain,
    find_recipes,
    store_address,
)
from slm.registry.opening import open_run
from slm.run_folder import CHECKPOINTS, KINDS, DataRoot
from slm.size import settings_of
from slm.storage import make_folder, to_json


def inspect(
    shards: Annotated[
        str,
        typer.Argument(
            metavar="SHARDS",
            help="A folder, or its name under data/shards; a recipe, of which the newest are "
            "taken; or a run.",
            autocompletion=shard_names,
        ),
    ],
    document: Annotated[
        int | None, typer.Option(metavar="N", help="Show the N-th document.")
    ] = None,
    excluded: Annotated[
        bool,
        typer.Option("--excluded", help="List every document that cleaning dropped, and why."),
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="With --excluded: those of one reason."),
    ] = None,
    card: Annotated[
        bool,
        typer.Option("--card", help="Write a data card, one HTML page, under data/cards/."),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the data card to this file.")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the data card in the browser.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the counts of shards, one document, what cleaning dropped, or write a data card.

    Examples: slm inspect SHARDS --document 3 · slm inspect RECIPE --excluded · slm inspect RECIPE
    --card --open
    """
    from slm.cli import tables
    from slm.inspection.shards import open_shards
    from slm.inspection.texts import origin_of
    from slm.tokens.shards import inspecting

    card = card or html is not None or open_page
    if (document is not None) + (excluded or reason is not None) + card > 1:
        raise UserError("give one of --document, --excluded and --card")
    opened = open_shards(shards)
    if excluded or reason is not None:
        show_excluded(opened, reason, as_json)
        return
    if card:
        write_card(opened, html, open_page, as_json)
        return
    report = {**inspecting.inspect(opened.path, document), **counts_of_dropped(opened)}
    if document is not None:
        shown = report["document"]
        number = document - (opened.splits["train"].documents if shown["split"] == "val" else 0)
        origin = origin_of(opened, DataRoot(), shown["split"], number)
        shown |= dict(zip(("part", "file", "row", "columns"), origin, strict=True))
    if as_json:
        print(to_json(report))
        return
    console().print(tables.shards(report) if document is None else tables.document(report))
    if document is None:
        suggest(as_json, f"slm inspect {shards} --excluded", f"slm inspect {shards} --card --open")


def verify(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="A run, shards or a source, by name; or any folder of data/. With --published: "
            "the run or version that it must be.",
            autocompletion=result_names,
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Of a run: replay these steps (also A: or :B)."),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|FILE|ORG/NAME",
            help="Whether an export, or a repository of the hub, is the model that it claims to "
            "be: weights, config and tokenizer.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hash every file again; of a run, also replay a range of steps and compare the bits.

    Examples: slm verify RUN --steps 100:120 · slm verify --published out
    """
    from slm.tokens.shards import inspecting

    if published is not None:
        if steps is not None:
            raise UserError("--published compares files, and --steps trains: give one of them")
        verify_published(published, folder, as_json)
        return
    if folder is None:
        raise UserError(
            "name a run, shards, a vocabulary, a source or a folder of data/; or give --published"
        )

    data = (data_root() / kind / folder for kind in KINDS)
    path = next((p for p in (Path(folder), *data) if p.is_dir()), Path(folder))
    if steps is not None or not path.is_dir() or (path / CHECKPOINTS).is_dir():
        _verify_run(folder, steps, as_json)
    elif any(path.glob("train_*.bin")):
        show(inspecting.verify(path), as_json)
    else:
        show(_verify_records(path), as_json)


def _verify_run(run: str, steps: str | None, as_json: bool) -> None:
    """Hash a run's files, replay the range of steps, and report whether the bits are the same."""
    from slm.reproduction.replay import verify_steps

    start, stop = step_range(steps)
    folder = open_run(run)
    has_records = folder.is_finished or folder.checkpoints
    hashed = _verify_records(folder.path) if has_records else {"files": 0, "records": 0}
    with display_for(as_json) as display, display.progress("replay") as progress:
        replay = verify_steps(folder, start, stop, progress)
    show({**hashed, **asdict(replay), "verdict": replay.verdict}, as_json)
    suggest(as_json, f"slm lineage {run}")
    if replay.verdict != "identical":
        raise typer.Exit(1)


def step_range(steps: str | None) -> tuple[int | None, int | None]:
    """`A:B`, `A:` or `:B` as two numbers. Raises UserError for anything else."""
    if steps is None:
        return None, None
    try:
        start, stop = (int(part) if part else None for part in steps.split(":"))
    except ValueError as error:
        raise UserError(f"--steps {steps!r} is not A:B, such as 100:200, 100: or :200") from error
    return start, stop


def _verify_records(folder: Path) -> dict[str, int]:
    """Compare every file below a folder with its record."""
    from slm.storage import LEFTOVER, RECORD, check_files

    records = [
        path
        for path in sorted(folder.rglob(RECORD))
        if not any(map(LEFTOVER.fullmatch, path.relative_to(folder).parts))
    ]
    if not records:
        raise UserError(f"{folder} contains no {RECORD}: give a folder of data/, such as a run's")
    files, wrong = 0, []
    for path in records:
        try:
            files += check_files(path.parent)
        except CorruptionError as error:
            wrong.append(str(error))
    if wrong:
        raise CorruptionError("; ".join(wrong))
    return {"files": files, "records": len(records)}


def check(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Forecast its time and memory on this machine, with warnings.",
            autocompletion=recipe_names,
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Check pipelines.yaml, every recipe, deployment and key; forecast a recipe by a probe.

    Example: slm check tinystories
    """
    if recipe is None:
        check_project(as_json)
    else:
        show_forecast(recipe, settings, as_json)


def check_project(as_json: bool) -> None:
    """Check every recipe, the store's address and the deployments; print how many there are."""
    make_folder(data_root())  # Prefect's home is in it: before Prefect is imported

    from slm.orchestration.stack import deployments

    count = check_recipes()
    if address := store_address():
        from slm.store.address import parse_address

        parse_address(address)
    deployed = deployments.check() if (project_root() / PIPELINES).is_file() else {}
    counts = {"recipes": count, "deployments": len(deployed)}
    text = f"{counted(count, 'recipe')} and {counted(len(deployed), 'deployment')} are valid"
    print(to_json(counts) if as_json else text)
    suggest(as_json, "slm recipes")


def show_forecast(recipe: str, settings: list[str] | None, as_json: bool) -> None:
    """Print a recipe's time and memory on this machine, from a probe, and what is unlikely."""
    from slm.cli import tables
    from slm.model.export.readers import limits
    from slm.orchestration import stages
    from slm.planning.plan import model_size
    from slm.training import forecast, needs, preflight

    config, start = stages.starting_point(load(recipe, settings))
    vocabulary = start.tokenizer_sha256 if start else None
    warnings = preflight.check_before_download(config, tokenizer_sha256=vocabulary)
    shards = preflight.known_shards(config, tokenizer_sha256=vocabulary)
    forecast.check_limit(config, shards)
    if not as_json:
        show_wide(tables.stated(config))
        show_wide(tables.needs(needs.measure(config)))
        print("timing some steps on this machine …", flush=True)
    cost = forecast.forecast(config, shards)
    advice = [*warnings, *forecast.advice(config, cost, shards), *limits(config.model)]
    if as_json:
        parts = model_size(config).model_dump()
        print(to_json({**parts, **cost.model_dump(), "advice": advice}))
        return
    show_wide(tables.forecast(cost, available_memory()))
    for line in advice or ["no warnings"]:
        print(line)
    suggest(as_json, command_line("run", recipe, settings))


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A recipe: what it states. With --explain: a setting, or a section such as train.",
            autocompletion=settings_and_recipes,
        ),
    ] = None,
    explained: Annotated[
        bool,
        typer.Option("--explain", help="List the settings: type, default and meaning."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes, shipped and of pipelines.yaml, or explain what a recipe can set.

    Example: slm recipes --explain train
    """
    from slm.cli import tables

    known = find_recipes()
    by_name = {recipe.name: recipe.fields or {} for recipe in known.values()}
    if explained or (name and name not in by_name):
        settings = explain(name)
        if as_json:
            show({"settings": [asdict(setting) for setting in settings]}, as_json)
        else:
            show_wide(tables.settings(settings))
            suggest(as_json, f"slm run quickstart --set {settings[0].key}=VALUE")
        return
    chosen = {name: by_name[name]} if name else by_name
    if as_json:
        facts = [
            {
                "name": key,
                "description": describe(key, recipe),
                "shipped": known[key].shipped,
                "settings": _stated(recipe),
            }
            for key, recipe in chosen.items()
        ]
        show({"recipes": facts}, as_json)
    elif name:
        show_wide(tables.pairs({"recipe": name, "": describe(name, by_name[name])}))
        show_wide(tables.pairs(_stated(by_name[name])))
        suggest(as_json, f"slm check {name}", f"slm run {name}")
    else:
        console().print(tables.recipes(by_name))
        show_whose(known.values())
        suggest(as_json, "slm recipes NAME", "slm run NAME")


def show_whose(known: Iterable[Recipe]) -> None:
    """Print which recipes are the project's own, and where they are."""
    path = project_root() / PIPELINES
    if own := [recipe.name for recipe in known if not recipe.shipped]:
        console().print(f"{', '.join(own)}: of {shorten(path)}; all others are shipped")
    elif not path.is_file():
        console().print(
            f"shipped; a {PIPELINES} in this folder adds recipes, or replaces these by name"
        )


def _stated(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, by dotted keys."""
    return settings_of({key: value for key, value in recipe.items() if key != DESCRIPTION})


def bench(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The name of a script in benchmarks/.",
            autocompletion=benchmark_names,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Measure our figures next to those of peers and the machine's limits.

    Options other than --json go to the script.

    Example: slm bench train --isa
    """
    folders = (folder / "benchmarks" for folder in (project_root(), checkout()) if folder)
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise UserError("the benchmarks are in the project's repository: run this in a checkout")
    scripts = {path.stem: path for path in folder.glob("[a-z]*.py")}
    if name not in scripts:
        raise unknown("benchmark", name, scripts)
    options = [*context.args, *(["--json"] if as_json else [])]
    command = [sys.executable, str(scripts[name]), *options]
    code = subprocess.run(command, check=False).returncode
    if code and as_json:
        show({"error": f"benchmarks/{name}.py ended with code {code}"}, as_json)
    raise typer.Exit(code)
