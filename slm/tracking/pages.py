"""MLflow's page of an experiment: its training runs, with the columns that matter.

A fresh browser opens an experiment on an empty page for GenAI, whatever its tag of kind: only the
address decides, by `workflowType`. Columns and order are a saved view, which MLflow keeps in a tag
of the experiment and offers in a menu of the page.
"""

import json
from collections.abc import Sequence
from urllib.parse import urlencode

VIEW = "slm"  # id of the saved view
COLUMNS = (
    "attributes.`Created`",
    "metrics.`full_val_bpb`",
    "metrics.`val_bpb`",
    "metrics.`train_loss`",
    "metrics.`tok_per_sec`",
    "params.`plan.max_steps`",
    "params.`train.tokens_per_step`",
    "params.`train.learning_rate`",
    "params.`model.n_layer`",
    "params.`model.n_embd`",
)
_STATE = {
    "selectedColumns": COLUMNS,
    "orderByKey": "metrics.`full_val_bpb`",
    "orderByAsc": True,  # the best run first
}
TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {"name": "Training runs", "createdAt": 0, "updatedAt": 0, "state": json.dumps(_STATE)}
    ),
}


def training_runs(server: str, experiment_id: str) -> str:
    """The address at which a browser shows the training runs of an experiment."""
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def sweep_view(name: str, key: str, parent: str, space: Sequence[str]) -> tuple[str, str]:
    """The tag of an experiment, and its value, that is a saved view of a sweep's trials.

    Ordered by a metric, so that MLflow lists them one by one: it draws no run that is folded below
    its parent.

    Args:
        parent: id of the sweep's parent run.
        space: the dotted keys of the settings that vary: the coordinates, and the columns.
    """
    chart = {
        "uuid": f"{_view(key)}-coordinates",
        "type": "PARALLEL",
        "runsCountToCompare": 1000,
        "metricSectionId": _view(key),
        "deleted": False,
        "isGenerated": False,
        "selectedParams": list(space),
        "selectedMetrics": ["full_val_bpb"],
        "showAllRuns": False,
    }
    section = {
        "uuid": _view(key),
        "name": name,
        "display": True,
        "isReordered": False,
        "columns": 1,
        "cardHeight": 500,
    }
    columns = [
        "metrics.`full_val_bpb`",
        *(f"params.`{setting}`" for setting in space),
        "tags.`slm.trial`",
        "params.`train.seed`",
        "metrics.`tok_per_sec`",
    ]
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "selectedColumns": columns,
        "orderByKey": "metrics.`full_val_bpb`",
        "orderByAsc": True,
        "compareRunCharts": [chart],
        "compareRunSections": [section],
        "runsHiddenMode": "SHOW_ALL",
    }
    view = {"name": f"Sweep {name}", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return f"mlflow.sharedViewState.{_view(key)}", json.dumps(view)


def sweep(server: str, experiment_id: str, key: str) -> str:
    """The address at which a browser shows a sweep's trials in parallel coordinates."""
    query = {
        "workflowType": "machine_learning",
        "viewStateShareKey": _view(key),
        "compareRunsMode": "CHART",
    }
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def _view(key: str) -> str:
    return f"{VIEW}-{key[:12]}"
