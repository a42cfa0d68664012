"""What happens to models, as Prefect events for automations such as docs/webhook.py.

event                   resource                    payload
slm.version.promoted    slm.model.NAME.VERSION      the gate's decision
slm.version.refused     slm.model.NAME.VERSION      the gate's decision
slm.data.drifted        slm.dataset.RECIPE          the decision to retrain and its figures
slm.flow.failed         slm.recipe.RECIPE           the flow run and how it ended
                        slm.sweep.NAME              the same of a sweep

An event that cannot be sent is logged, and nothing else fails.
"""

import logging
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event

from slm.registry.version import GateDecision
from slm.retraining.decide import Decision

logger = logging.getLogger(__name__)


def decided(decision: GateDecision) -> None:
    """Send what the gate decided."""
    resource = f"slm.model.{decision.model}.{decision.version}"
    payload = decision.model_dump(mode="json")
    _emit(f"slm.version.{decision.decision}", resource, decision.uri, payload)


def drifted(decision: Decision) -> None:
    """Send that the new documents are of another language than the champion's."""
    resource = f"slm.dataset.{decision.recipe}"
    _emit("slm.data.drifted", resource, decision.dataset, decision.model_dump(mode="json"))


def failed(flow: "Flow[..., Any]", flow_run: FlowRun, state: "State[Any]") -> None:
    """A hook of flows: send that one has failed or crashed."""
    kind = "sweep" if "sweep" in flow_run.parameters else "recipe"
    name = str(flow_run.parameters.get(kind, "unknown"))
    facts = {
        "flow": flow.name,
        "flow_run": flow_run.name,
        "flow_run_id": str(flow_run.id),
        "state": state.name,
        "message": state.message,
    }
    _emit("slm.flow.failed", f"slm.{kind}.{name}", name, facts)


def _emit(event: str, resource: str, name: str, payload: dict[str, Any]) -> None:
    try:
        emit_event(
            event,
            resource={"prefect.resource.id": resource, "prefect.resource.name": name},
            payload=payload,
        )
    except Exception as error:  # what the event reports is done in any case
        logger.warning("the event %s was not sent: %s", event, error)
