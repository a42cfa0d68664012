"""The commands that look at what is there: samples, shards, hashes, recipes, benchmarks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.options import AsJson, RunName, Settings, show
from slm.config import (
    data_root,
    load_recipe,
    parse_overrides,
    project_root,
    read_pipelines,
)
from slm.errors import CorruptionError, UserError, unknown


def sample(
    run: RunName,
    prompt: Annotated[
        list[str] | None, typer.Option(help="How the text begins; may be given more than once.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among so many tokens.")] = 50,
    top_p: Annotated[
        float | None, typer.Option(help="… or among those that make up this share.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Write at most so many tokens.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Let a model write."""
    from flows.runs import write_samples

    samples = write_samples(
        run,
        prompt or ["Once upon a time"],
        stream=None if as_json else sys.stdout,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    if as_json:
        show({"samples": samples}, as_json)


def inspect(
    shards: Annotated[
        str, typer.Argument(metavar="SHARDS", help="A folder, or its name under data/shards.")
    ],
    document: Annotated[
        int | None, typer.Option(metavar="N", help="Show the N-th document.")
    ] = None,
) -> None:
    """Show what shards hold."""
    from flows import tables
    from slm.shards import read_shards

    path = Path(shards) if Path(shards).is_dir() else data_root() / "shards" / shards
    record = read_shards(path)
    Console().print(
        tables.shards(record) if document is None else tables.document(record, document)
    )


def verify(
    folder: Annotated[Path, typer.Argument(help="Of shards, a run, or anything else in data/.")],
) -> None:
    """Hash every file below a folder again and compare with what was recorded."""
    from slm.records import Record
    from slm.storage import RECORD, mismatches

    found = sorted(folder.rglob(RECORD))
    if not found:
        raise UserError(f"{folder} holds no {RECORD}: give a folder of data/, such as a run's")
    files, wrong = 0, []
    for path in found:
        fields = json.loads(path.read_bytes())
        entries = Record.model_validate({name: fields[name] for name in ("key", "files")}).files
        files += len(entries)
        wrong += mismatches(path.parent, entries)
    if wrong:
        raise CorruptionError("; ".join(wrong))
    Console().print(f"{files} files of {len(found)} records are as recorded", highlight=False)


def check(
    recipe: Annotated[
        str | None, typer.Argument(help="Forecast what it will cost here, and advise.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Check pipelines.yaml, every recipe, deployment and key; forecast a recipe by a probe."""
    from flows import deployments, tables

    found = deployments.check()
    if recipe is None:
        counts = {"recipes": len(found.recipes), "deployments": len(found.deployments)}
        text = "{recipes} recipes and {deployments} deployments are in order".format(**counts)
        print(json.dumps(counts) if as_json else text)
        return
    config = load_recipe(recipe, parse_overrides(settings or []))
    from slm import forecast

    shards = forecast.known_shards(config)
    cost = forecast.forecast(config, shards.splits["train"].tokens if shards else None)
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
    from flows import tables

    Console().print(tables.recipes(read_pipelines()["recipes"]))


def bench(
    name: Annotated[str, typer.Argument(help="encode, train or sample.")], as_json: AsJson = False
) -> None:
    """Measure our figures beside those of peers, on this machine."""
    scripts = {path.stem: path for path in (project_root() / "benchmarks").glob("[a-z]*.py")}
    if name not in scripts:
        raise unknown("benchmark", name, scripts)
    command = [sys.executable, str(scripts[name]), *(["--json"] if as_json else [])]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
