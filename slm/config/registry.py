"""Settings of the registry: the model's name, and the gate."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from slm.config.setting import NAME, Fraction, PositiveFloat, PositiveInt, Section, setting


class RegistryConfig(Section):
    """Where the model is registered, and what a version must show to become champion.

    Versions of one name compete: only models of the same kind of text should share it.
    """

    model: str | None = setting(
        None,
        "Name of the registered model; null: the setting name, else the name of the data.",
        pattern=NAME,
    )
    tracking_uri: str | None = setting(
        None,
        "Address of the MLflow server or store; null: MLFLOW_TRACKING_URI, else SQLite under "
        "data/mlflow/.",
    )

    gate_documents: PositiveInt = setting(
        1000, "Held-out documents on which challenger and champion are compared."
    )
    margin: float = setting(
        0.0,
        "Bits per byte by which the challenger may be worse, at 95 % confidence; 0: it must be "
        "better.",
    )
    margins: dict[str, Annotated[float, Field(ge=0)]] = setting(
        {},
        "Sources of data.sources, each with the bits per byte by which the challenger may be worse "
        "on its held-out documents, at 95 % confidence: {wiki: 0.01}.",
    )
    max_bpb: PositiveFloat = setting(
        4.0, "Maximum bits per byte of a first champion, which has no other to beat."
    )
    beat_baselines: bool = setting(
        True,
        "Whether a first champion must predict its held-out text better than token counts and xz "
        "do.",
    )
    max_degenerate: Fraction = setting(
        0.1, "Maximum share of samples that are empty, invalid or repetitive."
    )
    max_memorised: Fraction = setting(
        0.25, "Maximum share of samples that copy more of the training data than human text does."
    )
    benchmarks: dict[str, Annotated[float, Field(ge=0, le=1)]] = setting(
        {},
        "Tasks of benchmark.tasks, each with the accuracy by which the challenger may be worse, at "
        "95 % confidence: {blimp: 0.01}.",
    )

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if re.search(r"://[^/\s]*@", self.tracking_uri or ""):
            raise ValueError(
                "registry.tracking_uri contains a user or password, which every run would keep: "
                "give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self
