"""The commands that look at what is there: shards, hashes, recipes, benchmarks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slm.cli.options import AsJson, Settings, display_for, show
from slm.config import data_root, project_root
from slm.errors import CorruptionError, UserError, unknown
from slm.recipes import load_recipe, parse_overrides, read_pipelines


def inspect(
    shards: Annotated[
        str, typer.Argument(metavar="SHARDS", help="A folder, or its name under data/shards.")
    ],
    document: Annotated[
        int | None, typer.Option(metavar="N", help="Show the N-th document.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what shards hold."""
    from slm.cli import tables
    from slm.tokens.shards import inspecting

    path = Path(shards) if Path(shards).is_dir() else data_root() / "shards" / shards
    found = inspecting.inspect(path, document)
    if as_json:
        print(json.dumps(found))
        return
    Console().print(tables.shards(found) if document is None else tables.document(found))


def verify(
    folder: Annotated[
        str, typer.Argument(help="Shards, a run, or any other folder of data/ (a name will do).")
    ],
    steps: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Of a run: train these steps again (A: and :B too)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hash everything again; of a run, also train a stretch again and compare its bits."""
    from slm.tokens.shards import inspecting

    path = Path(folder) if Path(folder).is_dir() else data_root() / "shards" / folder
    if steps is not None or not path.is_dir() or (path / "checkpoints").is_dir():
        _verify_run(folder, steps, as_json)
    elif any(path.glob("train_*.bin")):
        show(inspecting.verify(path), as_json)
    else:
        show(_verify_records(path), as_json)


def _verify_run(run: str, steps: str | None, as_json: bool) -> None:
    """Hashes a run's files, trains the stretch again, and tells whether the bits are the same."""
    from dataclasses import asdict

    from slm.cli.runs import run_folder
    from slm.reproduction.replay import verify_steps

    path = run_folder(run)
    hashed = _verify_records(path.path)
    start, stop = _stretch(steps)
    with display_for(as_json) as display, display.progress("replay") as progress:
        found = verify_steps(path, start, stop, progress)
    show({**hashed, **asdict(found), "verdict": found.verdict}, as_json)
    if found.verdict != "identical":
        raise typer.Exit(1)


def _stretch(steps: str | None) -> tuple[int | None, int | None]:
    if steps is None:
        return None, None
    try:
        start, stop = (int(part) if part else None for part in steps.split(":"))
    except ValueError as error:
        raise UserError(f"--steps {steps!r} is not A:B, such as 100:200, 100: or :200") from error
    return start, stop


def _verify_records(folder: Path) -> dict[str, int]:
    """Compares every file below a folder with the record that vouches for it."""
    from slm.storage import RECORD, check_files

    found = sorted(folder.rglob(RECORD))
    if not found:
        raise UserError(f"{folder} holds no {RECORD}: give a folder of data/, such as a run's")
    files, wrong = 0, []
    for path in found:
        try:
            files += check_files(path.parent)
        except CorruptionError as error:
            wrong.append(str(error))
    if wrong:
        raise CorruptionError("; ".join(wrong))
    return {"files": files, "records": len(found)}


def check(
    recipe: Annotated[
        str | None, typer.Argument(help="Forecast what it will cost here, and advise.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Check pipelines.yaml, every recipe, deployment and key; forecast a recipe by a probe."""
    from slm.cli import tables
    from slm.orchestration.stack import deployments

    found = deployments.check()
    if recipe is None:
        counts = {"recipes": len(found.recipes), "deployments": len(found.deployments)}
        text = "{recipes} recipes and {deployments} deployments are in order".format(**counts)
        print(json.dumps(counts) if as_json else text)
        return
    config = load_recipe(recipe, parse_overrides(settings or []))
    from slm.training import forecast

    shards = forecast.known_shards(config)
    cost = forecast.forecast(config, shards)
    advice = forecast.advice(config, cost, shards)
    if as_json:
        print(json.dumps({**cost.model_dump(), "advice": advice}))
        return
    Console().print(tables.recipes({recipe: found.recipes[recipe]}))
    Console().print(tables.pairs(cost.model_dump()))
    for line in advice or ["nothing to warn of"]:
        print(line)


def recipes() -> None:
    """List the recipes of pipelines.yaml."""
    from slm.cli import tables

    Console().print(tables.recipes(read_pipelines()["recipes"]))


def bench(
    name: Annotated[str, typer.Argument(help="The name of a script in benchmarks/.")],
    as_json: AsJson = False,
) -> None:
    """Measure our figures beside those of peers, on this machine."""
    scripts = {path.stem: path for path in (project_root() / "benchmarks").glob("[a-z]*.py")}
    if name not in scripts:
        raise unknown("benchmark", name, scripts)
    command = [sys.executable, str(scripts[name]), *(["--json"] if as_json else [])]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
