"""`flows/retrain.py:retrain`: train again where there is a reason to; promote what is better."""

from slm.orchestration.retrain import retrain

__all__ = ["retrain"]
