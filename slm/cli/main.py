"""The `slm` command. It parses and shows; the work is done by the library and by the flows.

Exit codes: 0 done · 1 failed · 2 bad input · 130 interrupted, state saved. Heavy modules are
imported inside the commands, so that `slm --help` answers immediately.
"""

import errno
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from slm import __version__, machine
from slm.cli.batch import batch
from slm.cli.benchmark import benchmark
from slm.cli.compare import compare
from slm.cli.doctor import doctor
from slm.cli.ending import finish, stop
from slm.cli.export import export
from slm.cli.help import Command, Group, first_hour, usage_message
from slm.cli.history import gc, lineage, reproduce, runs
from slm.cli.init import init
from slm.cli.inspection import bench, check, inspect, recipes, verify
from slm.cli.ladder import ladder
from slm.cli.launch import launch
from slm.cli.mix import mix
from slm.cli.options import (
    AsJson,
    Name,
    RecipeOrDefault,
    Settings,
    console,
    display_for,
    load,
    overrides,
    show,
    show_line,
    show_wide,
    suggest,
)
from slm.cli.plan import make_plan, plan, show_plan
from slm.cli.promotion import models, promote, rollback
from slm.cli.sampling import chat, sample
from slm.cli.serve import serve
from slm.cli.stages import download, encode, evaluate, register, report, sync, tokenizer, train
from slm.cli.store import pull, push
from slm.cli.sweep import sweep
from slm.cli.watch import watch
from slm.config import DataConfig, PipelineConfig, data_root
from slm.errors import Interrupted, SlmError, UserError, check_utf8
from slm.orchestration import stages
from slm.orchestration.display import shorten
from slm.recipes import default_recipe
from slm.run_folder import RunFolder
from slm.storage import hashing_once, make_folder, to_json

app = typer.Typer(
    name="slm",
    help="From a dataset to a registered small language model.",
    cls=Group,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"slm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """From a dataset to a registered small language model.

    `slm` alone shows where to begin; `slm COMMAND --help` explains a command, with an example.
    """
    if context.invoked_subcommand is None:
        show_line("slm: from a dataset to a registered small language model\n")
        show_wide(first_hour())
        show_line("\nall commands: slm --help    settings: slm recipes --explain")
        show_line("this machine: slm doctor    completion: slm --install-completion")


# ---- the whole pipeline -----------------------------------------------------------------------


def run(
    recipe: RecipeOrDefault = None,
    settings: Settings = None,
    name: Name = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what `slm plan` does, and do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take a dataset to a registered model, through the Prefect flow.

    Example: slm run quickstart --set train.max_steps=300
    """
    recipe = recipe or default_recipe()
    config = load(recipe, settings, name)
    if dry_run:
        show_plan(make_plan(recipe, settings, name), as_json)
        return
    check_before_server(config)
    with display_for(as_json) as display:
        from slm.orchestration.local import run_flow
        from slm.report.prompts import report_prompts, sample_command
        from slm.report.summary import headline
        from slm.tracking.server import training_page

        results = run_flow("pipeline", recipe, overrides(settings, name))
        display.write(f"val_bpb   {results['val_bpb']:.3f} bits per byte")
        display.write(f"report    {shorten(Path(results['report']))}")
        if sentence := headline(Path(results["report"]).parent):
            display.write(f"          {sentence}")
        if page := training_page(config, data_root()):
            display.write(f"mlflow    {page}")
    made = RunFolder(Path(results["run"]))
    prompts = report_prompts(config, made.shards)
    suggest(as_json, sample_command(made.name, prompts), f"slm report {made.name} --open")
    if as_json:
        show(results, as_json)


def retrain(
    recipe: RecipeOrDefault = None, settings: Settings = None, as_json: AsJson = False
) -> None:
    """Train again where the data or the recipe give a reason to; promote what is better.

    Example: slm retrain quickstart
    """
    recipe = recipe or default_recipe()
    config = load(recipe, settings)
    if config.retrain.approval and "PREFECT_API_URL" not in os.environ:
        raise UserError(
            "retrain.approval=True asks on a Prefect page, and a temporary server has none: "
            "`slm up`, and set PREFECT_API_URL; or --set retrain.approval=false"
        )
    check_before_server(config)
    with display_for(as_json):
        from slm.orchestration.local import run_flow

        results = run_flow("retrain", recipe, overrides(settings))
    show(results, as_json)
    suggest(as_json, "slm models")


def check_before_server(config: PipelineConfig) -> None:
    """Report bad input before any server starts. The flow checks again, and logs warnings."""
    from slm.source.mixture import naming
    from slm.training.preflight import check_before_download

    config, start = stages.starting_point(config)
    check_before_download(config, tokenizer_sha256=start.tokenizer_sha256 if start else None)
    for name in config.data.sources:
        with naming(name):
            _check_files(config.of_source(name).data)
    if not config.data.sources:
        _check_files(config.data)


def _check_files(data: DataConfig) -> None:
    """Raises UserError where local files are missing."""
    if data.source == "files":
        from slm.source.files import find_files
        from slm.source.remote import is_here

        if is_here(data):
            find_files(data)


def up(
    prefect_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the Prefect server.")
    ] = 4200,
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the MLflow server.")
    ] = 5000,
    postgres: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Prefect's database: postgresql+asyncpg://HOST/NAME."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout once all is up.")
    ] = False,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, with every deployment; Ctrl-C ends it.

    Example: slm up --prefect-port 4201
    """
    make_folder(data_root())  # before prefect is imported, which warns where its home cannot be
    from slm.orchestration.stack import services

    def ready(addresses: dict[str, str], deployed: list[str]) -> None:
        if as_json:
            show(addresses, as_json)
            sys.stdout.flush()
        usual = f"pipeline/{default_recipe()}"
        if name := usual if usual in deployed else next(iter(deployed), None):
            suggest(as_json, f"slm prefect deployment run {name} --watch  # in another terminal")

    services.up(
        prefect_port=prefect_port,
        mlflow_port=mlflow_port,
        postgres=postgres,
        write=partial(typer.echo, err=as_json),
        on_ready=ready,
    )


def prefect(arguments: typer.Context) -> None:
    """Run Prefect's own command on the servers of `slm up`.

    Example: slm prefect deployment run pipeline/quickstart --watch
    """
    from slm.orchestration.addresses import prefect_environment

    environment = prefect_environment()
    os.execve(sys.executable, [sys.executable, "-m", "prefect", *arguments.args], environment)


# ---- the list of commands ---------------------------------------------------------------------

for title, commands in (
    ("The whole pipeline", (init, run, plan, sweep, ladder, retrain, up)),
    (
        "One stage",
        (
            download,
            tokenizer,
            encode,
            mix,
            train,
            watch,
            stop,
            finish,
            evaluate,
            benchmark,
            report,
            register,
            sync,
        ),
    ),
    (
        "Inspect and generate",
        (sample, chat, serve, export, inspect, batch, verify, check, recipes, doctor),
    ),
    ("The registry", (models, promote, rollback)),
    ("Runs and lineage", (runs, lineage, reproduce, compare, gc)),
    ("Other machines", (push, pull)),
):
    for command in commands:
        app.command(cls=Command, rich_help_panel=title)(command)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(cls=Command, rich_help_panel="Inspect and generate", context_settings=PASSED_ON)(bench)
app.add_typer(launch, rich_help_panel="The whole pipeline")
app.command(
    cls=Command,
    rich_help_panel="The whole pipeline",
    context_settings={**PASSED_ON, "help_option_names": []},
)(prefect)


# ---- entry ------------------------------------------------------------------------------------


COMPLETING = "_SLM_COMPLETE"  # set by a shell that asks what may come next
_signals: list[int] = []  # that this process received


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _signals.append(number)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; a failure that explains itself is one line, without a traceback.

    An interrupted one skips what Python does at its end, which takes seconds.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # both interrupt a command in the same way
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
    """Run the command line; whatever ends it early is one message, with --json one of JSON too."""
    if COMPLETING in os.environ:
        with suppress(SlmError):
            app(prog_name="slm")
        return
    try:
        for argument in sys.argv[1:]:
            check_utf8(argument, "the argument", "write it in UTF-8, or rename the file")
        try:
            machine.prepare()
        except UserError:
            if sys.argv[1:2] != ["doctor"]:  # which reports it among the rest
                raise
        with hashing_once():
            code = app(standalone_mode=False, prog_name="slm")
    except SlmError as error:
        _fail(str(error), error.exit_code)
    except TyperException as error:
        _fail(usage_message(error), error.exit_code)
    except typer.Abort:
        _fail("aborted", 1)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _fail(f"{error.filename!r} is too long for the name of a file", UserError.exit_code)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            _show_as_json(f"{type(error).__name__}: {error}")
            raise
        where = error.filename or data_root()
        _fail(
            f"cannot write to {where} ({error.strerror}): free some space, repair its permissions, "
            "or point SLM_DATA at another folder",
            UserError.exit_code,
        )
    except Exception as error:
        _show_as_json(f"{type(error).__name__}: {error}")
        raise
    if code == Interrupted.exit_code:
        _show_as_json("interrupted: what is done is kept")
    sys.exit(code or 0)


def _fail(message: str, exit_code: int) -> NoReturn:
    console(stderr=True).print(f"error: {message}", soft_wrap=True)
    _show_as_json(message)
    sys.exit(exit_code)


def _show_as_json(message: str) -> None:
    """With --json, a failure is one object on stdout too."""
    if "--json" in sys.argv:
        print(to_json({"error": message}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
