"""The flow that takes a dataset to a registered model."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from slm.config import DEFAULT_RECIPE
from slm.errors import SlmError
from slm.orchestration import events, tasks
from slm.orchestration.addresses import check_registry
from slm.orchestration.artifacts import clear_earlier
from slm.orchestration.outline import Until, run_pipeline
from slm.recipes import load_recipe
from slm.storage import sha256_json

Overrides = dict[str, Any] | None
PATIENCE_SECONDS = 60.0  # for an MLflow server that is being restarted


def run_name() -> str:
    """`<name>-<key of the config>-<date>`: the same settings have the same key.

    The part before the key names the stage as well, where a run ends at one, and `retrain`.
    """
    given = flow_run.parameters
    recipe = given.get("recipe", DEFAULT_RECIPE)
    until = "retrain" if flow_run.flow_name == "retrain" else given.get("until", "promote")
    stage = "" if until == "promote" else f"-{until}"
    try:
        config = load_recipe(recipe, given.get("overrides"))
    except SlmError:  # the flow itself reports it
        return f"{recipe}{stage}-invalid"
    work = f"{config.folder_name}{stage}"
    key = sha256_json(config.model_dump(mode="json"))[:8]
    return f"{work}-{key}-{flow_run.scheduled_start_time:%Y-%m-%d-%H%M}"


# How every flow over a recipe is made.
recipe_flow = flow(
    flow_run_name=run_name,
    persist_result=False,
    on_running=[clear_earlier],
    on_failure=[events.failed],
    on_crashed=[events.failed],
)


@recipe_flow
def pipeline(
    recipe: str = DEFAULT_RECIPE, overrides: Overrides = None, until: Until = "promote"
) -> dict[str, Any]:
    """A dataset → a trained, evaluated, registered model, champion where it is better.

    Args:
        recipe: a name in `pipelines.yaml`.
        overrides: dotted keys, such as `{"train.max_steps": 100}`.
        until: the last stage to run; those before it run too, where they are not complete.
    """
    config = load_recipe(recipe, overrides)
    if until in ("register", "promote"):
        check_registry(config, patience=PATIENCE_SECONDS)
    return run_pipeline(config, until, steps=tasks)
