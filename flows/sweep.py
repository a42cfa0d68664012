"""`flows/sweep.py:sweep`: many trials of a recipe with other settings, and the best of them."""

from slm.orchestration.sweep import sweep

__all__ = ["sweep"]
