"""The flow of a sweep: its trials as tasks, several at a time, and what is best of them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

import slm.sweeps.definition
from slm.orchestration import events, sweep_outline
from slm.orchestration.addresses import check_registry
from slm.orchestration.artifacts import TrialTable, clear_earlier, publish_sweep
from slm.orchestration.display import current, showing
from slm.orchestration.pipeline import PATIENCE_SECONDS, Overrides
from slm.orchestration.trials import Trials
from slm.storage import hashing_once
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import Trial
from slm.sweeps.tracked import outcome
from slm.tracking.sweeps import page


def run_name() -> str:
    """`<name>-<date>`."""
    name = flow_run.parameters.get("sweep", "sweep")
    return f"{name}-{flow_run.scheduled_start_time:%Y-%m-%d-%H%M}"


@flow(
    flow_run_name=run_name,
    persist_result=False,
    on_running=[clear_earlier],
    on_failure=[events.failed],
    on_crashed=[events.failed],
)
def sweep(
    sweep: str,
    overrides: Overrides = None,
    trials: Annotated[int, Field(ge=1)] | None = None,
    budget: str | None = None,
    workers: Annotated[int, Field(ge=1)] = 1,
    deployment: str | None = None,
) -> Any:
    """Run the trials of a sweep that are not done yet, and report the best of all.

    A run that was cancelled or crashed, or another run of the same sweep, resumes it.

    Args:
        sweep: a name under `sweeps:` in `pipelines.yaml`.
        overrides: settings of all its trials by dotted key, such as `{"train.max_steps": 100}`:
            another sweep.
        trials: how many; None: as the sweep has them.
        budget: such as `2h`; None: as the sweep has it.
        workers: trials that run at a time, as far as the limits `gpu` and `trial` allow.
        deployment: of the flow `pipeline`, such as `pipeline/trial`, whose workers train the
            trials, each in a flow run of its own; None: this process.
    """
    given = {"trials": trials, "budget": budget}
    asked = slm.sweeps.definition.load_sweep(sweep)
    asked = asked.model_copy(
        update={
            "overrides": {**asked.overrides, **(overrides or {})},
            **{name: value for name, value in given.items() if value is not None},
        }
    )
    check_registry(asked.config(), patience=PATIENCE_SECONDS)
    with ExitStack() as stack:
        stack.enter_context(showing(current()))
        stack.enter_context(hashing_once())  # source and shards, which all trials share
        asked = sweep_outline.with_inputs(asked)
        folder = SweepFolder.of(asked)
        table = TrialTable(folder)
        run_trial = Trials(asked, deployment)
        stack.enter_context(noticing_signals(run_trial.stopping))

        def ended(trial: Trial) -> None:
            table.update()

        result = sweep_outline.carry_out(
            asked, workers=workers, run_trial=run_trial, on_trial=ended
        )
        table.update()
        publish_sweep(folder, result)
        publish_page(folder)
        sentence = outcome(list(result.trials), result.best, result)
        return Completed(message=sentence, data=sweep_outline.summary(folder, result))


def publish_page(folder: SweepFolder) -> None:
    """Leave a link to the sweep's page in MLflow, where that has one."""
    if address := page(folder.path, folder.sweep.config()):
        text = "the trials in parallel coordinates, in MLflow"
        create_link_artifact(address, text, key="mlflow-sweep", description=text)


@contextmanager
def noticing_signals(stopping: threading.Event) -> Iterator[None]:
    """Set an event when a signal is to end this process, which does not reach its threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def notice(number: int, frame: FrameType | None) -> None:
        stopping.set()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in before:
        signal.signal(number, notice)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
