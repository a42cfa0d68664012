"""The `slm` command. It parses and shows; the work is done by the library and by the flows.

Exit codes: 0 done · 1 failed · 2 bad input · 130 interrupted, state saved. Heavy modules are
imported inside the commands, so that `slm --help` answers at once.
"""

import errno
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from flows import environment
from flows.display import Display, shorten, showing_on
from slm.config import DEFAULT_RECIPE, data_root, load_recipe, parse_overrides
from slm.errors import SlmError, UserError

app = typer.Typer(
    name="slm",
    help="From a dataset to a registered small language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RecipeName = Annotated[str, typer.Argument(help="A recipe of pipelines.yaml; see `slm recipes`.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, its name, or models:/NAME@ALIAS.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: train.max_steps=100."),
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")]

PIPELINE, STAGES, LOOK = "The whole pipeline", "One stage", "Look and check"


# ---- the whole pipeline -----------------------------------------------------------------------


@app.command(rich_help_panel=PIPELINE)
def run(
    recipe: RecipeName = DEFAULT_RECIPE, settings: Settings = None, as_json: AsJson = False
) -> None:
    """Take a dataset to a registered model, through the Prefect flow."""
    overrides = parse_overrides(settings or [])
    load_recipe(recipe, overrides)  # bad input is told before any server starts
    with _display(as_json) as display:
        from flows.local import run_pipeline

        results = run_pipeline(recipe, overrides)
        display.write(f"val_bpb   {results['val_bpb']:.3f} bits a byte")
        display.write(f"report    {shorten(Path(results['report']))}")
        display.write(f'try       slm sample {results["version"]} --prompt "Once upon a time"')
    _print_json(results, as_json)


# ---- one stage --------------------------------------------------------------------------------


@app.command(rich_help_panel=STAGES)
def download(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Fetch a recipe's dataset as parquet files."""
    import slm.source

    config = load_recipe(recipe, parse_overrides(settings or []))
    with _display(as_json) as display:
        source = display.stage("download", lambda p: slm.source.download(config, progress=p))
    _print_json(
        {
            "source": str(source.path),
            "dataset": source.dataset,
            "revision": source.revision,
            "documents": source.documents,
            "bytes": sum(split.bytes for split in source.splits.values()),
            "files": {name: entry.sha256 for name, entry in source.files.items()},
        },
        as_json,
    )


@app.command(rich_help_panel=STAGES)
def encode(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Turn a recipe's dataset into token shards."""
    import slm.shards

    import slm.source

    config = load_recipe(recipe, parse_overrides(settings or []))
    with _display(as_json) as display:
        source = display.stage("download", lambda p: slm.source.download(config, progress=p))
        shards = display.stage("encode", lambda p: slm.shards.encode(config, source, progress=p))
    splits = shards.splits.values()
    _print_json(
        {
            "shards": str(shards.path),
            "documents": sum(split.documents for split in splits),
            "tokens": sum(split.tokens for split in splits),
            "bytes": sum(split.bytes for split in splits),
            "files": {name: entry.sha256 for name, entry in shards.files.items()},
        },
        as_json,
    )


@app.command(rich_help_panel=STAGES)
def train(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Train a recipe's model, or go on with a training that was interrupted."""
    import slm.launch
    import slm.shards

    import slm.source

    config = load_recipe(recipe, parse_overrides(settings or []))
    with _display(as_json) as display:
        source = display.stage("download", lambda p: slm.source.download(config, progress=p))
        shards = display.stage("encode", lambda p: slm.shards.encode(config, source, progress=p))
        trained = display.stage("train", lambda p: slm.launch.train(config, shards, progress=p))
    fields = [
        "step",
        "tokens",
        "train_loss",
        "val_loss",
        "val_bpb",
        "tok_per_sec",
        "seconds",
        "weights_sha256",
    ]
    checkpoint = trained.path / "checkpoints" / trained.last
    _print_json(
        {
            "run": str(trained.path),
            "checkpoint": str(checkpoint),
            **trained.model_dump(include=set(fields)),
        },
        as_json,
    )


# ---- entry ------------------------------------------------------------------------------------


@contextmanager
def _display(as_json: bool) -> Iterator[Display]:
    """Shows stages on stdout, or on stderr where stdout is for JSON."""
    with showing_on(Console(stderr=as_json)) as display:
        yield display


def _print_json(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Runs the command; a failure that explains itself is one line, without a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)  # stopping is one thing, however it is asked for
    try:
        environment.prepare()
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
