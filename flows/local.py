"""The pipeline on Prefect's own temporary server, or on the one that PREFECT_API_URL names."""

import os
from typing import Any


def run_pipeline(recipe: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Runs the flow in this process and returns what it returns.

    Prefect's lines go to its own page only: this process shows the stages itself.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

    from flows.pipeline import pipeline

    return pipeline(recipe, overrides)
