"""The flow of a sweep: its trials as tasks, several at a time, and what is best of them."""

from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from slm.orchestration import events, sweep_outline, tasks
from slm.orchestration.addresses import check_registry
from slm.orchestration.artifacts import TrialTable, clear_earlier, publish_sweep
from slm.orchestration.display import current, showing
from slm.orchestration.pipeline import PATIENCE_SECONDS, Overrides
from slm.orchestration.sweep_winner import promote_winner
from slm.orchestration.trials import Trials, check_deployment
from slm.storage import hashing_once
from slm.sweeps.definition import load_sweep
from slm.sweeps.folder import SweepFolder
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
    promote: bool = False,
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
        promote: whether the winner is then registered and handed to the gate.
    """
    check_deployment(deployment)
    asked = load_sweep(sweep, overrides=overrides or None, trials=trials, budget=budget)
    check_registry(asked.config(), patience=PATIENCE_SECONDS)
    with showing(current()), hashing_once():
        asked = sweep_outline.with_inputs(asked)
        folder = SweepFolder.of(asked)
        table = TrialTable(folder)
        table.update()
        result = sweep_outline.carry_out(
            asked,
            workers=workers,
            run_trial=Trials(asked, deployment),
            on_trial=lambda trial: table.update(),
            links=own_page(),
        )
        table.update()
        made = sweep_outline.summary(folder, result)
        publish_sweep(folder, result)
        publish_page(folder)
        if promote:
            made |= promote_winner(folder, steps=tasks)
        return Completed(message=outcome(folder), data=made)


def own_page() -> dict[str, str]:
    """The page of this flow run, where the server has pages."""
    return {"Its page in Prefect": flow_run.ui_url} if flow_run.ui_url else {}


def publish_page(folder: SweepFolder) -> None:
    """Leave a link to the sweep's page in MLflow, where that has one."""
    if address := page(folder.path, folder.sweep.config()):
        text = "the trials in parallel coordinates, in MLflow"
        create_link_artifact(address, text, key="mlflow-sweep", description=text)
