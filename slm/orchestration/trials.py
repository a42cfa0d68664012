"""The trials of a sweep as Prefect tasks: trained by this process, or by a deployment's workers.

A trial is a task, and its stages are plain calls inside it: tasks of their own would leave five
entries and two artifacts a trial on the sweep's page, and a flow run of its own costs a second.
With a deployment a trial is one of its flow runs, up to `evaluate`, on whichever worker of its pool
is free; this process then reads the result from the data folder or the store that they share. The
trials are the same either way: what is proposed never depends on who has trained it.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from slm.config import PipelineConfig
from slm.errors import (
    Interrupted,
    InUse,
    NewerFormat,
    SlmError,
    TrainingError,
    Untrainable,
    UserError,
)
from slm.orchestration.display import Display, current, showing
from slm.orchestration.gpu_limit import TRIAL, slot
from slm.orchestration.sweep_outline import train_and_evaluate
from slm.orchestration.tasks import gpu, stage_task
from slm.progress import Progress
from slm.recipes import load_recipe
from slm.records import Evaluation, Run
from slm.storage import canonical_json, sha256_json
from slm.sweeps.definition import SEED, Sweep
from slm.sweeps.driver import check_stopping
from slm.sweeps.tracked import settings

POLL_SECONDS = 2.0  # between two looks at a flow run on another worker
MAX_TRIES = 3  # of a trial whose flow run crashed: its worker, or its machine, is gone
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
KINDS = {
    kind.__name__: kind for kind in (UserError, NewerFormat, TrainingError, Untrainable, InUse)
}


class Trials:
    """Trains the trials of a sweep, in the threads of its driver.

    Args:
        deployment: whose flow runs train them, such as `pipeline/trial`; None: this process.
    """

    def __init__(self, sweep: Sweep, deployment: str | None = None) -> None:
        self.sweep = sweep
        self.deployment = deployment

    def __call__(self, config: PipelineConfig) -> tuple[Run, Evaluation]:
        """A trial as a task, which waits for its turn. Raises as its stages do."""
        flat = config.flat()
        names = (*self.sweep.space, SEED) if self.sweep.seeds > 1 else self.sweep.space
        values = {name: flat[name] for name in names}
        return trial.with_options(task_run_name=settings(values))(self, config)


@stage_task
def trial(trials: Trials, config: PipelineConfig) -> tuple[Run, Evaluation]:
    """A config → its run and its evaluation."""
    with showing(_Stoppable(current())):
        if trials.deployment:
            train_elsewhere(trials.deployment, config, trials.sweep.overrides)
            return train_and_evaluate(config)  # of which every stage is complete
        with slot(TRIAL, check_stopping):
            return train_and_evaluate(config, turn=gpu(config))


class _Stoppable(Display):
    """A display whose progress callbacks end the stage that calls them, once the sweep ends."""

    def __init__(self, display: Display) -> None:
        super().__init__(display.write, display.console)

    @contextmanager
    def progress(self, name: str) -> Iterator[Progress]:
        with super().progress(name) as shown:

            def progress(what: str, done: float, total: float | None) -> None:
                check_stopping()
                shown(what, done, total)

            yield progress


# ---- on other workers -------------------------------------------------------------------------


def train_elsewhere(deployment: str, config: PipelineConfig, overrides: Mapping[str, Any]) -> None:
    """Let a worker of a deployment train and evaluate a config; wait until it has.

    A flow run of the same trial that has not ended is waited for, and no second one is started.

    `overrides`: those of the sweep, without which the recipe may not load.

    Raises what the flow run failed by, SlmError where it did not complete for another reason.
    """
    parameters = {
        "recipe": config.recipe,
        "overrides": differences(config, overrides),
        "until": "evaluate",
    }
    tag = f"trial:{sha256_json(parameters)[:16]}"
    for tries in range(1, MAX_TRIES + 1):
        with get_client(sync_client=True) as client:
            run = unfinished(client, tag) or start(deployment, parameters, tag)
            state = wait(client, run).state
        assert state is not None
        if state.is_completed():
            return
        if tries == MAX_TRIES or not state.is_crashed():
            raise failure(f"{run.name}, by {deployment}", state.message or f"{state.name}")


def check_deployment(deployment: str | None) -> None:
    """Raises UserError where the server has no such deployment."""
    if deployment is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(deployment)
    except (ObjectNotFound, ValueError):
        raise UserError(
            f"deployment={deployment!r}: the Prefect server has no such deployment; "
            "`slm prefect deployment ls` lists them"
        ) from None


def differences(config: PipelineConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides by which a recipe gives a config, the given ones among them."""
    base = load_recipe(config.recipe, overrides).flat()
    return {
        **overrides,
        **{
            name: value
            for name, value in config.flat().items()
            if canonical_json(value) != canonical_json(base[name])
        },
    }


def unfinished(client: SyncPrefectClient, tag: str) -> FlowRun | None:
    """The flow run with a tag that waits or runs, as of a driver that was killed."""
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[tag]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
        )
    )
    return next(iter(runs), None)


def start(deployment: str, parameters: dict[str, Any], tag: str) -> FlowRun:
    """Start a flow run of a deployment, below the trial's task on the sweep's page."""
    run = run_deployment(deployment, parameters=parameters, tags=["trial", tag], timeout=0)
    assert isinstance(run, FlowRun)  # a coroutine only where a loop is running
    return run


def wait(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """A flow run once it has ended; it is cancelled where the sweep ends before it."""
    while not (run.state and run.state.is_final()):
        time.sleep(POLL_SECONDS)
        try:
            check_stopping()
        except Interrupted:
            client.set_flow_run_state(run.id, Cancelling())
            raise
        with suppress(httpx.TransportError):  # the server is being restarted
            run = client.read_flow_run(run.id)
    return run


def failure(run: str, message: str) -> SlmError:
    """The error of a flow run that failed, from the message of its state."""
    raised = re.search(r"exception: (\w+): (.*)", message, re.DOTALL)
    kind = KINDS.get(raised[1]) if raised else None
    if raised and kind:
        return kind(raised[2].strip())
    return SlmError(f"{run} did not complete: {message}")
