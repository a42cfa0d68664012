"""MLflow's page of an experiment: its training runs, with the columns that matter.

A fresh browser opens an experiment on an empty page for GenAI, whatever its tag of kind: only the
address decides, by `workflowType`. Columns and order are a saved view, which MLflow keeps in a tag
of the experiment and offers in a menu of the page.
"""

import json

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
