"""`flows/pipeline.py:pipeline`: a dataset to a registered model, or up to one of its stages."""

from slm.orchestration.pipeline import pipeline

__all__ = ["pipeline"]
