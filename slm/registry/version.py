"""A model version as the registry has it, and what the gate decided about it."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from slm import storage
from slm.errors import UserError
from slm.records import Frozen, SourceDifference, TaskDifference, Version, model_uri
from slm.registry.tags import PREFIX, benchmark_accuracies
from slm.run_folder import CHECKPOINTS, DataRoot, RunFolder
from slm.tracking.entities import public_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

CHAMPION, CHALLENGER = "champion", "challenger"
DECISION_TAG = "verdict"  # holds a GateDecision as JSON


class GateDecision(Frozen):
    """What the gate measured and decided. Differences are challenger minus champion."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    model: str
    version: str
    champion: str | None  # the version that it was compared with, if any
    decision: Literal["promoted", "refused"]
    forced: str | None = None  # the reason that was given for overriding the gate
    val_bpb: float
    champion_bpb: float | None = None
    difference: float | None = None  # bits per byte
    low: float | None = None  # the 95 % interval of the difference
    high: float | None = None
    baselines: dict[str, float] = Field(default_factory=dict)  # of a first champion: their bpb
    benchmarks: tuple[TaskDifference, ...] = ()  # of registry.benchmarks: champion, challenger
    sources: tuple[SourceDifference, ...] = ()  # of a mixture, each
    margin: float
    limits: dict[str, float] = Field(default_factory=dict)  # the gate's settings, by their names
    documents: int
    documents_sha256: str
    vetoes: list[str]
    warnings: list[str] = Field(default_factory=list)  # what may make its figure too good
    approval: str | None = None  # who approved or rejected it before the alias moved, and why
    reason: str
    reused: bool = Field(default=False, exclude=True)  # an earlier decision; nothing moved

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return model_uri(self.model, self.version)

    @model_serializer(mode="wrap")
    def _without_empty_sources(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is stored of a decision on one source is what always was."""
        stored: dict[str, Any] = fields(self)
        if not self.sources:
            stored.pop("sources", None)
        return stored


@dataclass(frozen=True)
class ModelVersion:
    """A version as the registry has it."""

    name: str
    version: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]  # ours, without their prefix
    run_id: str  # of the MLflow run
    registered: float  # unix seconds

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return model_uri(self.name, self.version)

    @property
    def gate_decision(self) -> GateDecision | None:
        """None where the gate has not assessed it, or left what this slm cannot read.

        A model that was renamed since keeps the decisions on its versions.
        """
        with suppress(ValidationError):
            decision = GateDecision.model_validate_json(self.tags.get(DECISION_TAG, ""))
            return decision.model_copy(update={"model": self.name, "version": self.version})
        return None

    def required(self, tag: str) -> str:
        """One of our tags. Raises UserError where the version lacks it: slm did not register it."""
        if tag not in self.tags:
            raise UserError(
                f"{self.uri} was not registered by slm: it has no tag {PREFIX}{tag}; name another "
                "version, as `slm models` lists them"
            )
        return self.tags[tag]

    def run(self, root: Path | DataRoot | None = None) -> RunFolder:
        """The run that it was made from; it may be gone."""
        return DataRoot(root).named_run(self.required("run"))

    def checkpoint(self, root: Path | DataRoot | None = None) -> Path:
        """The checkpoint that it was made from, in its run's folder; it may be gone."""
        return storage.named(self.run(root).path / CHECKPOINTS, self.required("checkpoint"))

    def record(self, key: str, uri: str) -> Version:
        """What `registered.json` remembers of it; `uri`: of the server that has it."""
        return Version(
            key=key,
            model=self.name,
            version=self.version,
            aliases=list(self.aliases),
            run_id=self.run_id,
            tracking_uri=public_uri(uri),
        )

    def facts(self) -> dict[str, Any]:
        """What `slm models` lists of it, as JSON values."""
        val_bpb = self.tags.get("val_bpb")
        return {
            "name": self.uri,
            "aliases": list(self.aliases),
            "run": self.tags.get("run"),
            "val_bpb": float(val_bpb) if val_bpb else None,
            "benchmarks": benchmark_accuracies(self.tags),
            "decision": self.tags.get("decision"),
            "registered": self.registered,
        }


def from_mlflow(entry: "MlflowVersion", aliases: Iterable[str] | None = None) -> ModelVersion:
    """A version from MLflow's entry. `aliases`: None: those in the entry, which a search lacks."""
    return ModelVersion(
        name=entry.name,
        version=str(entry.version),
        aliases=tuple(sorted(entry.aliases if aliases is None else aliases)),
        tags={k.removeprefix(PREFIX): v for k, v in entry.tags.items() if k.startswith(PREFIX)},
        run_id=entry.run_id or "",
        registered=entry.creation_timestamp / 1000,
    )
