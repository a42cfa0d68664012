"""The flow of `flows/pipeline.py:pipeline`, and each of its stages as a flow."""

from slm.orchestration.pipeline import (
    download,
    encode,
    evaluate,
    pipeline,
    register,
    report,
    train,
)

__all__ = ["download", "encode", "evaluate", "pipeline", "register", "report", "train"]
