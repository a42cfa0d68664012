"""The commands of one stage, from download to register, and sync."""

import re
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from slm.cli.completion import recipe_and_run_names
from slm.cli.index import show_index
from slm.cli.options import (
    AsJson,
    Name,
    OptionalRunName,
    RecipeOrDefault,
    RunName,
    Settings,
    command_line,
    display_for,
    load,
    show,
    show_line,
    show_wide,
    suggest,
)
from slm.config import DataConfig
from slm.errors import UserError
from slm.orchestration import stages
from slm.recipes import default_recipe, find_recipes
from slm.records import LATEST, Evaluation, Report, Run, Shards
from slm.registry.opening import finished_run, model_folder, open_run
from slm.run_folder import RunFolder, run_of_checkpoint


def download(
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a recipe's dataset as parquet files.

    Example: slm download quickstart
    """
    recipe = recipe or default_recipe()
    config = load(recipe, settings, name)
    with display_for(as_json):
        source = stages.downloaded(config)
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


def tokenizer(
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's own vocabulary, or read the one that it is given (data.tokenizer).

    Example: slm tokenizer quickstart --set data.tokenizer.train=bpe
    """
    from slm.tokens.vocabulary import check_set  # with numpy

    recipe = recipe or default_recipe()
    config = load(recipe, settings, name)
    check_set(config)
    with display_for(as_json):
        stages.check_encoding(config)
        vocabulary = stages.tokenizer(config, stages.downloaded(config))
    result = {
        "tokenizer": str(vocabulary.path),
        "kind": vocabulary.kind,
        "vocab_size": vocabulary.vocab_size,
        "pattern": vocabulary.pattern,
        "documents": vocabulary.documents,
        "bytes": vocabulary.bytes,
        "tokenizer_sha256": vocabulary.tokenizer_sha256,
        "files": {name: entry.sha256 for name, entry in vocabulary.files.items()},
    }
    show(result, as_json)
    suggest(as_json, command_line("encode", recipe, settings))


def encode(
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Turn a recipe's dataset into token shards.

    Example: slm encode quickstart --set data.vocab_size=1024
    """
    recipe = recipe or default_recipe()
    config = load(recipe, settings, name)
    with display_for(as_json):
        shards = stages.all_shards(config)
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


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|RUN",
            autocompletion=recipe_and_run_names,
            help="A recipe of pipelines.yaml, by default that of `slm run`; or a run, by its "
            "folder or name, to resume it by its own settings.",
        ),
    ] = None,
    settings: Settings = None,
    name: Name = None,
    longer: Annotated[
        int | None,
        typer.Option(
            "--longer",
            metavar="STEPS",
            min=1,
            help="Of a run whose schedule is wsd: train it for so many steps more, as a run of "
            "its own.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's model, or resume a run that was interrupted, or train it for longer.

    Examples: slm train quickstart --set train.max_steps=100 · slm train quickstart-3693316e0b15 ·
    slm train mine-0f3b61c2a9d4 --longer 500
    """
    recipe = recipe or default_recipe()
    if folder := run_or_recipe(recipe):
        if settings or name:
            raise UserError(
                f"{folder.name} is a run, which keeps its settings and its name: leave out --set "
                f"and --name, or give the recipe, {folder.config.recipe}, for another run"
            )
        run = _train_run(folder, longer, as_json)
    elif longer:
        raise UserError(
            f"--longer prolongs a run, and {recipe!r} is a recipe: give a run of `slm runs`, or "
            "--set train.max_steps=STEPS"
        )
    else:
        config = load(recipe, settings, name)
        stages.check_tracking(config)
        with display_for(as_json):
            config, start = stages.starting_point(config)
            stages.preflight(config, start)
            source = stages.downloaded(config)
            parent = stages.initial_model(start) if start else None
            shards = stages.shards_of(config, source, parent)
            run = stages.train(config, shards, parent)
    show(train_result(run), as_json)
    suggest(as_json, f"slm evaluate {run.name}", f"slm report {run.name} --open")


def _train_run(folder: RunFolder, longer: int | None, as_json: bool) -> Run:
    """Resume a run, or train it for longer."""
    if longer:
        from slm.training.derive import check_schedule

        check_schedule(folder, longer)
    stages.check_tracking(folder.config)
    with display_for(as_json):
        stages.need_shards(folder)
        return stages.train_longer(folder, longer) if longer else stages.resume(folder)


def run_or_recipe(name: str) -> RunFolder | None:
    """The run that a name or a folder means; None where it is a recipe, or neither.

    Raises UserError where it is both.
    """
    is_recipe = "/" not in name and name in find_recipes()
    try:
        run = open_run(name)
    except UserError:
        is_run = name == LATEST or "/" in name or re.search(r"-[0-9a-f]{12}$", name)
        if is_recipe or not is_run:
            return None  # the recipe's error names the nearest one
        raise
    if is_recipe:
        raise UserError(
            f"{name!r} is a recipe and a run: give the folder of the run, {run.path}, or rename "
            "the recipe"
        )
    return run


def train_result(run: Run) -> dict[str, Any]:
    """What is shown of a trained run."""
    return {
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


# ---- of a run ---------------------------------------------------------------------------------


def evaluate(
    run: RunName,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Score the documents of this file instead."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of --data that contains the text, or a path into one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on every held-out document, or on the documents of a file.

    Example: slm evaluate models:/slm@champion --data stories.jsonl
    """
    if column is not None and data is None:
        raise UserError("--column names a column of --data: give --data FILE too")
    with display_for(as_json) as display:
        if data is None:
            *_, evaluation = _evaluated(run)
            fields = {"documents", "tokens", "bytes", "val_loss", "val_bpb"}
            result = evaluation.model_dump(include=fields)
            if sources := evaluation.details.get("sources"):
                result["sources"] = sources
        else:
            from slm.evaluation.evaluate import evaluate_file

            checkpoint = model_folder(run)
            trained_in = run_of_checkpoint(checkpoint)
            reading = trained_in.config.data if trained_in else DataConfig()
            with display.progress("evaluate") as progress:
                result = evaluate_file(checkpoint, data, reading, progress, column=column)
    show(result, as_json)
    if "sources" in result and not as_json:
        from slm.cli import tables

        show_line("")
        show_wide(tables.sources(result["sources"]))
    suggest(as_json, f"slm report {run} --open")


def report(
    run: OptionalRunName = None,
    index: Annotated[
        bool,
        typer.Option(
            "--index", help="Write a page that lists all reports of the data folder instead."
        ),
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's report, one self-contained HTML file; or the list of all reports.

    Examples: slm report RUN --open · slm report --index --open
    """
    if index:
        if run is not None:
            raise UserError(f"--index lists the reports of all runs: leave out {run!r}")
        show_index(open_page, as_json)
        return
    if run is None:
        raise UserError("give a run of `slm runs`, such as latest; or --index for all reports")
    from slm.report.prompts import report_prompts, sample_command
    from slm.report.summary import headline

    with display_for(as_json) as display:
        folder, _, shards, _, written = _reported(run)
        prompts = report_prompts(folder.config, shards)
        if sentence := headline(written.path):
            display.write(sentence)
    page = written.path / written.html
    show({"report": str(page)}, as_json)
    if open_page:
        webbrowser.open(page.as_uri())
    suggest(as_json, f"slm register {run}", sample_command(run, prompts))


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
            f"the shards of {folder.name} are gone, and it was not evaluated: `slm train "
            f"{folder.name}` makes them again"
        )
    return folder, record, None, evaluation


def _reported(run: str) -> tuple[RunFolder, Run, Shards | None, Evaluation, Report]:
    """The same, and its report."""
    folder, record, shards, evaluation = _evaluated(run)
    written = stages.report(folder.config, record, evaluation, shards)
    return folder, record, shards, evaluation, written
