"""The scheduled flow: is there a reason to train again, how much, and is the result better?"""

import logging
from typing import Any

from prefect import pause_flow_run, suspend_flow_run
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

import slm.registry.gate
import slm.registry.register
import slm.retraining.decide
import slm.retraining.shown
from slm.config import DEFAULT_RECIPE, PipelineConfig
from slm.orchestration import events, stages, tasks
from slm.orchestration.addresses import check_registry
from slm.orchestration.display import current, showing
from slm.orchestration.outline import summary, took
from slm.orchestration.pipeline import PATIENCE_SECONDS, Overrides, recipe_flow
from slm.recipes import load_recipe
from slm.records import Shards, Version
from slm.registry.version import GateDecision
from slm.retraining.decide import Decision

logger = logging.getLogger("slm.retrain")  # below `slm`, so that its lines reach the Prefect page


class Approval(RunInput):
    """What a person answers before a version becomes champion."""

    approve: bool = False
    who: str = ""
    comment: str = ""


@recipe_flow
def retrain(recipe: str = DEFAULT_RECIPE, overrides: Overrides = None) -> Any:
    """Train again where the data or the recipe give a reason to, and promote what is better.

    Args:
        recipe: a name in `pipelines.yaml`; its section `retrain` holds the thresholds.
        overrides: dotted keys, such as `{"retrain.approval": true}`.
    """
    config = load_recipe(recipe, overrides)
    check_registry(config, patience=PATIENCE_SECONDS)
    stages.check_tracking(config)
    with showing(current()) as display:
        config, start = tasks.starting_point(config)
        stages.preflight(config, start)
        source = stages.downloaded(config, tasks)
        initial = tasks.initial_model(start) if start else None
        decision = tasks.decide(config, source, initial)
        publish_decision(decision)
        if not decision.trains:
            return Completed(message=f"nothing to do: {decision.reason}", data=outcome(decision))
        training, parent = slm.retraining.decide.training(config, decision, initial)
        *made, shards = stages.encoded(training, source, parent, tasks)
        assert isinstance(shards, Shards)
        run = tasks.train(training, shards, parent)
        evaluation = tasks.evaluate(training, run, shards)
        scored = [tasks.benchmark(training, run, shards)] if training.benchmark.tasks else []
        report = tasks.report(training, run, evaluation, shards)
        version = tasks.register(training, run, evaluation, report, shards)
        slm.registry.register.annotate(version, config, slm.retraining.shown.tags(decision))
        promotion = promote(config, version, decision)
        results = (source, *made, shards, run, evaluation, *scored, report, version, promotion)
        data = {**outcome(decision), **summary(training, results)}
        data |= took(display)
        ended = f"{promotion.decision}: {promotion.reason}" if promotion else "is champion"
        return Completed(message=f"{decision.action}; {version.uri} {ended}", data=data)


def promote(config: PipelineConfig, version: Version, decision: Decision) -> GateDecision | None:
    """The gate, with a person's approval before the alias moves where the recipe asks for it."""
    if not config.retrain.approval:
        promotion = tasks.promote(config, version)
    else:
        promotion = tasks.assess(config, version)
        if promotion and promotion.decision == "promoted" and not promotion.approval:
            promotion = ask(config, promotion, decision)
        promotion = tasks.promote(config, version, promotion)
    if promotion:
        create_markdown_artifact(
            f"# {version.uri}\n\n{slm.registry.gate.describe(promotion)}\n",
            key="verdict",
            description=promotion.reason,
        )
        add_tags(f"verdict:{promotion.decision}")
    return promotion


def ask(config: PipelineConfig, promotion: GateDecision, decision: Decision) -> GateDecision:
    """The gate's decision with a person's answer, given on the Prefect page.

    A deployment's run ends meanwhile and is started again with the answer, so that the question
    outlives workers and servers and occupies no concurrency slot; its stages are reused. (Prefect
    3.8 takes the slot from a run that waits, and then crashes it for not having it.) A run without
    a deployment waits. Without an answer in time the run fails, and nothing moves.
    """
    question = (
        f"{slm.registry.gate.describe(promotion, f'{promotion.uri} may be promoted')}\n\n"
        f"Trained because {decision.reason}. Shall this version become champion?"
    )
    wait = suspend_flow_run if deployment.id else pause_flow_run
    answer = wait(
        wait_for_input=Approval.with_initial_data(description=question),
        timeout=round(config.retrain.approval_hours * 3600),
        # An answer is to this question alone.
        key=f"{promotion.version}-after-{promotion.champion or 0}",
    )
    return slm.registry.gate.with_answer(
        promotion, approved=answer.approve, who=answer.who, comment=answer.comment
    )


# ---- what the Prefect page shows ----------------------------------------------------------------


def publish_decision(decision: Decision) -> None:
    """Leave the decision and its figures on the flow run, and send an event of drift."""
    logger.info("decision: %s, because %s", decision.action, decision.reason)
    create_markdown_artifact(
        slm.retraining.shown.describe(decision),
        key="retrain-decision",
        description=decision.reason,
    )
    rows = [
        {"figure": name, "value": value} for name, value in slm.retraining.shown.figures(decision)
    ]
    create_table_artifact(rows, key="retrain-figures", description=decision.reason)
    add_tags(*(f"{name}:{value}" for name, value in slm.retraining.shown.tags(decision).items()
               if name != "retrain_reason"))  # fmt: skip
    if decision.drifted and flow_run.run_count == 1:  # a resumed one has sent it already
        events.drifted(decision)


def add_tags(*tags: str) -> None:
    """Add tags to the flow run, as the Prefect page shows them."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        client.update_flow_run(run.id, tags=sorted({*run.tags, *tags}))


def outcome(decision: Decision) -> dict[str, Any]:
    """The decision as JSON values."""
    return decision.model_dump(mode="json", exclude={"limits"})
