"""The flow of `flows/retrain.py:retrain`."""

from slm.orchestration.retrain import retrain

__all__ = ["retrain"]
