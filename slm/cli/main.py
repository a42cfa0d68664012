"""The `slm` command. It parses and shows; the work is done by the library and by the flows.

Exit codes: 0 done · 1 failed · 2 bad input · 130 interrupted, state saved. Heavy modules are
imported inside the commands, so that `slm --help` answers at once.
"""

import errno
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from slm import machine
from slm.cli.history import compare, gc, lineage, models, reproduce, runs
from slm.cli.inspection import bench, check, inspect, recipes, verify
from slm.cli.options import AsJson, RecipeName, RunName, Settings, display_for, show
from slm.cli.promotion import promote, rollback
from slm.cli.sampling import chat, export, sample
from slm.config import DEFAULT_RECIPE, data_root
from slm.errors import Interrupted, SlmError, UserError
from slm.orchestration.display import shorten
from slm.recipes import load_recipe, parse_overrides

app = typer.Typer(
    name="slm",
    help="From a dataset to a registered small language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

PIPELINE, STAGES, LOOK = "The whole pipeline", "One stage", "Look and check"
CHAMPIONS = "The registry"
HISTORY = "Look back"


# ---- the whole pipeline -----------------------------------------------------------------------


@app.command(rich_help_panel=PIPELINE)
def run(
    recipe: RecipeName = DEFAULT_RECIPE, settings: Settings = None, as_json: AsJson = False
) -> None:
    """Take a dataset to a registered model, through the Prefect flow."""
    overrides = parse_overrides(settings or [])
    load_recipe(recipe, overrides)  # bad input is told before any server starts
    with display_for(as_json) as display:
        from slm.orchestration.local import run_flow

        results = run_flow("pipeline", recipe, overrides)
        display.write(f"val_bpb   {results['val_bpb']:.3f} bits a byte")
        display.write(f"report    {shorten(Path(results['report']))}")
        name = Path(results["run"]).name
        display.write(f'try       slm sample {name} --prompt "Once upon a time"')
    if as_json:
        show(results, as_json)


@app.command(rich_help_panel=PIPELINE)
def retrain(
    recipe: RecipeName = DEFAULT_RECIPE, settings: Settings = None, as_json: AsJson = False
) -> None:
    """Train again where the data or the recipe give a reason to; promote what is better."""
    overrides = parse_overrides(settings or [])
    config = load_recipe(recipe, overrides)
    if config.retrain.approval and "PREFECT_API_URL" not in os.environ:
        raise UserError(
            "retrain.approval=True asks on a Prefect page, and a temporary server has none: "
            "`slm up`, and set PREFECT_API_URL; or --set retrain.approval=false"
        )
    with display_for(as_json):
        from slm.orchestration.local import run_flow

        results = run_flow("retrain", recipe, overrides)
    show(results, as_json)


@app.command(rich_help_panel=PIPELINE)
def up(
    prefect_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of the Prefect server.")
    ] = 4200,
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of the MLflow server.")
    ] = 5000,
    postgres: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Prefect's database: postgresql+asyncpg://HOST/NAME."),
    ] = None,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, with every deployment; Ctrl-C ends it."""
    from slm.orchestration.stack import services

    services.up(
        prefect_port=prefect_port, mlflow_port=mlflow_port, postgres=postgres, write=typer.echo
    )


# ---- one stage --------------------------------------------------------------------------------


@app.command(rich_help_panel=STAGES)
def download(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Fetch a recipe's dataset as parquet files."""
    import slm.source.download

    config = load_recipe(recipe, parse_overrides(settings or []))
    with display_for(as_json) as display:
        source = display.stage(
            "download", lambda p: slm.source.download.download(config, progress=p)
        )
    result = {
        "source": str(source.path),
        "dataset": source.dataset,
        "revision": source.revision,
        "documents": source.documents,
        "bytes": sum(split.bytes for split in source.splits.values()),
        "files": {name: entry.sha256 for name, entry in source.files.items()},
    }
    show(result, as_json)


@app.command(rich_help_panel=STAGES)
def encode(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Turn a recipe's dataset into token shards."""
    import slm.source.download
    import slm.tokens.encode

    config = load_recipe(recipe, parse_overrides(settings or []))
    with display_for(as_json) as display:
        source = display.stage(
            "download", lambda p: slm.source.download.download(config, progress=p)
        )
        shards = display.stage(
            "encode", lambda p: slm.tokens.encode.encode(config, source, progress=p)
        )
    splits = shards.splits.values()
    result = {
        "shards": str(shards.path),
        "documents": sum(split.documents for split in splits),
        "tokens": sum(split.tokens for split in splits),
        "bytes": sum(split.bytes for split in splits),
        "files": {name: entry.sha256 for name, entry in shards.files.items()},
    }
    show(result, as_json)


@app.command(rich_help_panel=STAGES)
def train(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Train a recipe's model, or go on with a training that was interrupted."""
    import slm.source.download
    import slm.tokens.encode
    from slm.orchestration.stages import train_mirrored

    config = load_recipe(recipe, parse_overrides(settings or []))
    with display_for(as_json) as display:
        source = display.stage(
            "download", lambda p: slm.source.download.download(config, progress=p)
        )
        shards = display.stage(
            "encode", lambda p: slm.tokens.encode.encode(config, source, progress=p)
        )
        trained = display.stage("train", lambda p: train_mirrored(config, shards, p))
    result = {
        "run": str(trained.path),
        "checkpoint": str(trained.checkpoint("last")),
        "step": trained.step,
        "tokens": trained.tokens,
        "train_loss": trained.train_loss,
        "val_loss": trained.val_loss,
        "val_bpb": trained.val_bpb,
        "tok_per_sec": trained.tok_per_sec,
        "seconds": trained.seconds,
        "weights_sha256": trained.weights_sha256,
    }
    show(result, as_json)


@app.command(rich_help_panel=STAGES)
def evaluate(
    run: RunName,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Score this .parquet, .jsonl or .txt file instead."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on every held-out document, or on the documents of a file."""
    from slm.cli import runs

    with display_for(as_json) as display:
        if data is not None:
            result = runs.evaluate_file(run, data, display)
        else:
            _, _, evaluation = runs.evaluate(run, display)
            fields = {"documents", "tokens", "bytes", "val_loss", "val_bpb"}
            result = evaluation.model_dump(include=fields)
    show(result, as_json)


@app.command(rich_help_panel=STAGES)
def report(run: RunName, as_json: AsJson = False) -> None:
    """Write a run's report, one self-contained HTML file."""
    from slm.cli import runs

    with display_for(as_json) as display:
        written = runs.write_report(run, display)
    show({"report": str(written.path / written.html)}, as_json)


@app.command(rich_help_panel=STAGES)
def register(run: RunName, as_json: AsJson = False) -> None:
    """Make a run a model version in the MLflow registry."""
    from slm.cli import runs

    with display_for(as_json) as display:
        version = runs.register(run, display)
    show({"version": version.uri, "aliases": version.aliases}, as_json)


@app.command(rich_help_panel=STAGES)
def sync(run: RunName, as_json: AsJson = False) -> None:
    """Send MLflow what it lacks of a run."""
    import slm.tracking.mirror
    from slm.cli.runs import run_folder

    show({"mlflow_run": slm.tracking.mirror.sync(run_folder(run))}, as_json)


# ---- look and check ---------------------------------------------------------------------------

for command in (sample, chat, export, inspect, verify, check, recipes, bench):
    app.command(rich_help_panel=LOOK)(command)
for decision in (promote, rollback):
    app.command(rich_help_panel=CHAMPIONS)(decision)
for look_back in (runs, models, lineage, reproduce, compare, gc):
    app.command(rich_help_panel=HISTORY)(look_back)


# ---- entry ------------------------------------------------------------------------------------


_signals: list[int] = []  # that this process got


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _signals.append(number)
    raise KeyboardInterrupt


def main() -> None:
    """Runs the command; a failure that explains itself is one line, without a traceback.

    An interrupted one leaves without what Python does at its end, which takes seconds.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # stopping is one thing, however it is asked for
        signal.signal(number, _interrupt)
    try:
        _run_command()
    except SystemExit as end:
        if _signals and end.code == Interrupted.exit_code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(Interrupted.exit_code)
        raise


def _run_command() -> None:
    try:
        machine.prepare()
        app()
    except SlmError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or data_root()
        _fail(
            f"cannot write to {where} ({error.strerror}): free some space, mend its permissions, "
            "or point SLM_DATA at another folder",
            UserError.exit_code,
        )


def _fail(message: str, exit_code: int) -> NoReturn:
    Console(stderr=True).print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
