"""The commands of one stage: download, encode, train, evaluate, report, register, sync."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from slm.cli.options import (
    AsJson,
    RecipeName,
    RunName,
    Settings,
    command_line,
    display_for,
    load,
    show,
    suggest,
)
from slm.config import DataConfig
from slm.errors import UserError
from slm.orchestration import stages
from slm.records import Evaluation, Report, Run, Shards
from slm.registry.opening import finished_run, model_folder, open_run
from slm.run_folder import RunFolder, run_of_checkpoint


def download(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Fetch a recipe's dataset as parquet files.

    Example: slm download quickstart
    """
    config = load(recipe, settings)
    with display_for(as_json):
        source = stages.download(config)
    result = {
        "source": str(source.path),
        "dataset": source.dataset,
        "revision": source.revision,
        "documents": source.documents,
        "bytes": sum(split.bytes for split in source.splits.values()),
        "files": {name: entry.sha256 for name, entry in source.files.items()},
    }
    show(result, as_json)
    suggest(as_json, command_line("encode", recipe, settings))


def encode(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Turn a recipe's dataset into token shards.

    Example: slm encode quickstart --set data.vocab_size=1024
    """
    config = load(recipe, settings)
    with display_for(as_json):
        shards = stages.encode(config, stages.download(config))
    splits = shards.splits.values()
    result = {
        "shards": str(shards.path),
        "documents": sum(split.documents for split in splits),
        "tokens": sum(split.tokens for split in splits),
        "bytes": sum(split.bytes for split in splits),
        "files": {name: entry.sha256 for name, entry in shards.files.items()},
    }
    show(result, as_json)
    suggest(as_json, command_line("train", recipe, settings), f"slm inspect {shards.name}")


def train(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Train a recipe's model, or resume a training that was interrupted.

    Example: slm train quickstart --set train.max_steps=300
    """
    config = load(recipe, settings)
    stages.check_tracking(config)
    with display_for(as_json):
        stages.preflight(config)
        run = stages.train(config, stages.encode(config, stages.download(config)))
    result = {
        "run": str(run.path),
        "checkpoint": str(run.checkpoint("last")),
        "step": run.step,
        "tokens": run.tokens,
        "train_loss": run.train_loss,
        "val_loss": run.val_loss,
        "val_bpb": run.val_bpb,
        "tok_per_sec": run.tok_per_sec,
        "seconds": run.seconds,
        "weights_sha256": run.weights_sha256,
    }
    show(result, as_json)
    suggest(as_json, f"slm evaluate {run.name}", f"slm report {run.name} --open")


# ---- of a run ---------------------------------------------------------------------------------


def evaluate(
    run: RunName,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Score this .parquet, .jsonl or .txt file instead."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on every held-out document, or on the documents of a file.

    Example: slm evaluate models:/slm@champion --data stories.jsonl
    """
    with display_for(as_json) as display:
        if data is None:
            *_, evaluation = _evaluated(run)
            fields = {"documents", "tokens", "bytes", "val_loss", "val_bpb"}
            result = evaluation.model_dump(include=fields)
        else:
            from slm.evaluation.evaluate import evaluate_file

            checkpoint = model_folder(run)
            trained_in = run_of_checkpoint(checkpoint)
            reading = trained_in.config.data if trained_in else DataConfig()
            with display.progress("evaluate") as progress:
                result = evaluate_file(checkpoint, data, reading, progress)
    show(result, as_json)
    suggest(as_json, f"slm report {run} --open")


def report(
    run: RunName,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's report, one self-contained HTML file.

    Example: slm report RUN --open
    """
    from slm.report.summary import headline

    with display_for(as_json) as display:
        *_, written = _reported(run)
        if sentence := headline(written.path):
            display.write(sentence)
    page = written.path / written.html
    show({"report": str(page)}, as_json)
    if open_page:
        webbrowser.open(page.as_uri())
    suggest(as_json, f"slm register {run}", f'slm sample {run} --prompt "Once upon a time"')


def register(run: RunName, as_json: AsJson = False) -> None:
    """Make a run a model version in the MLflow registry.

    Example: slm register RUN
    """
    with display_for(as_json):
        folder, record, shards, evaluation, written = _reported(run)
        version = stages.register(folder.config, record, evaluation, written, shards)
    show({"version": version.uri, "aliases": version.aliases}, as_json)
    suggest(as_json, f"slm promote {version.uri}")


def sync(run: RunName, as_json: AsJson = False) -> None:
    """Upload to MLflow whatever it lacks of a run.

    Example: slm sync RUN
    """
    import slm.tracking.mirror

    show({"mlflow_run": slm.tracking.mirror.sync(open_run(run))}, as_json)
    suggest(as_json, f"slm lineage {run}")


def _evaluated(run: str) -> tuple[RunFolder, Run, Shards | None, Evaluation]:
    """A run, its record, its shards and its evaluation, which is made where it is missing."""
    folder, record = finished_run(run)
    shards = folder.shards
    if shards:
        return folder, record, shards, stages.evaluate(folder.config, record, shards)
    evaluation = folder.evaluation
    if evaluation is None:
        raise UserError(
            f"the shards of {folder.name} are gone, and it was not evaluated: `slm encode "
            f"{folder.config.recipe}` with the same settings makes them"
        )
    return folder, record, None, evaluation


def _reported(run: str) -> tuple[RunFolder, Run, Shards | None, Evaluation, Report]:
    """The same, and its report."""
    folder, record, shards, evaluation = _evaluated(run)
    written = stages.report(folder.config, record, evaluation, shards)
    return folder, record, shards, evaluation, written
