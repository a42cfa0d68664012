"""The flow that takes a dataset to a registered model, and each of its stages as a flow."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from slm.config import DEFAULT_RECIPE, PipelineConfig
from slm.errors import SlmError
from slm.orchestration import events, tasks
from slm.orchestration.artifacts import (
    clear_earlier,
    publish_metrics,
    publish_report,
    publish_version,
)
from slm.orchestration.display import current, showing
from slm.recipes import load_recipe
from slm.records import Evaluation, Report, Run, Shards, Source, Version
from slm.registry.versions import GateDecision
from slm.run_folder import CHECKPOINTS
from slm.storage import canonical_json, sha256_bytes

Overrides = dict[str, Any] | None


def run_name() -> str:
    """`<recipe>-<key of the config>-<date>`: the same settings have the same key."""
    given = flow_run.parameters
    recipe = given.get("recipe", DEFAULT_RECIPE)
    try:
        config = load_recipe(recipe, given.get("overrides"))
    except SlmError:  # the flow itself will say so
        return f"{recipe}-invalid"
    key = sha256_bytes(canonical_json(config.model_dump(mode="json")))[:8]
    return f"{recipe}-{key}-{flow_run.scheduled_start_time:%Y-%m-%d-%H%M}"


# How every flow over a recipe is made.
recipe_flow = flow(
    flow_run_name=run_name,
    persist_result=False,
    on_running=[clear_earlier],
    on_failure=[events.failed],
    on_crashed=[events.failed],
)


@recipe_flow
def pipeline(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> dict[str, Any]:
    """A dataset → a trained, evaluated, registered model, champion where it is better.

    Args:
        recipe: a name in `pipelines.yaml`.
        overrides: dotted keys, such as `{"train.max_steps": 100}`.
    """
    config = load_recipe(recipe, overrides)
    with showing(current()) as display:
        source = tasks.download(config)
        shards = tasks.encode(config, source)
        run = tasks.train(config, shards)
        evaluation = tasks.evaluate(config, run, shards)
        report = tasks.report(config, run, evaluation, shards)
        version = tasks.register(config, run, evaluation, report, shards)
        publish_metrics(run, evaluation)
        publish_report(report)
        publish_version(run, version)
        verdict = tasks.promote(config, version)
        results = summary(config, source, shards, run, evaluation, report, version, verdict)
        return {**results, "seconds": display.seconds, "reused": display.reused}


def summary(
    config: PipelineConfig,
    source: Source,
    shards: Shards,
    run: Run,
    evaluation: Evaluation,
    report: Report,
    version: Version,
    verdict: GateDecision | None,
) -> dict[str, Any]:
    """What a pipeline has made, as JSON values. Without a verdict, the version was champion."""
    return {
        "recipe": config.recipe,
        "source": str(source.path),
        "shards": str(shards.path),
        "run": str(run.path),
        "checkpoint": str(run.path / CHECKPOINTS / evaluation.checkpoint),
        "val_loss": evaluation.val_loss,
        "val_bpb": evaluation.val_bpb,
        "report": str(report.path / report.html),
        "version": version.uri,
        "champion": verdict is None or verdict.decision == "promoted",
        "verdict": verdict.reason if verdict else "it is the champion already",
    }


# ---- each stage as a flow, with the stages before it where they are not done -------------------


@recipe_flow
def download(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> str:
    """Downloads a recipe's dataset; returns its folder."""
    config = load_recipe(recipe, overrides)
    return str(tasks.download(config).path)


@recipe_flow
def encode(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> str:
    """Encodes a recipe's dataset; returns the folder of its shards."""
    config = load_recipe(recipe, overrides)
    return str(_encoded(config).path)


@recipe_flow
def train(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> str:
    """Trains a recipe's model; returns the run's folder."""
    config = load_recipe(recipe, overrides)
    return str(_trained(config).path)


@recipe_flow
def evaluate(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> dict[str, float]:
    """Scores a recipe's model on every held-out document; returns its losses."""
    config = load_recipe(recipe, overrides)
    shards = _encoded(config)
    run = tasks.train(config, shards)
    evaluation = tasks.evaluate(config, run, shards)
    publish_metrics(run, evaluation)
    return {"val_loss": evaluation.val_loss, "val_bpb": evaluation.val_bpb}


@recipe_flow
def report(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> str:
    """Writes the report of a recipe's model; returns the HTML file."""
    config = load_recipe(recipe, overrides)
    shards = _encoded(config)
    run = tasks.train(config, shards)
    written = tasks.report(config, run, tasks.evaluate(config, run, shards), shards)
    publish_report(written)
    return str(written.path / written.html)


@recipe_flow
def register(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> str:
    """Registers a recipe's model; returns the version's name."""
    config = load_recipe(recipe, overrides)
    shards = _encoded(config)
    run = tasks.train(config, shards)
    evaluation = tasks.evaluate(config, run, shards)
    version = tasks.register(
        config, run, evaluation, tasks.report(config, run, evaluation, shards), shards
    )
    publish_version(run, version)
    return version.uri


def _encoded(config: PipelineConfig) -> Shards:
    return tasks.encode(config, tasks.download(config))


def _trained(config: PipelineConfig) -> Run:
    return tasks.train(config, _encoded(config))
