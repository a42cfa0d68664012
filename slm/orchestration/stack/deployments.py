"""A strict reading of `pipelines.yaml`.

Prefect ignores keys that it does not know, so a misspelt `concurency_limit` would silently deploy
without one. Here every key of its deployment schema is known and any other is refused.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slm.config import project_root
from slm.errors import UserError, unknown
from slm.recipes import load_recipe, read_pipelines

Steps = list[dict[str, Any]] | dict[str, Any] | None


class Strict(BaseModel):
    """A mapping of the file without room for a misspelt key."""

    model_config = ConfigDict(extra="forbid")


class WorkPool(Strict):
    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)


class ConcurrencyLimit(Strict):
    limit: int = Field(gt=0)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    grace_period_seconds: int | None = Field(default=None, ge=60, le=86_400)


class Schedule(Strict):
    cron: str | None = None
    interval: float | str | None = None  # seconds, or a duration in ISO 8601
    rrule: str | None = None
    anchor_date: str | None = None
    timezone: str | None = None
    day_or: bool | None = None
    active: bool | None = None
    slug: str | None = None
    replaces: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.cron, self.interval, self.rrule)) != 1:
            raise ValueError("a schedule needs exactly one of cron, interval, rrule")
        return self


class Deployment(Strict):
    name: str
    entrypoint: str = Field(pattern=r"^[\w/]+\.py:\w+$")
    description: str
    version: str
    tags: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    enforce_parameter_schema: bool = True
    work_pool: WorkPool
    concurrency_limit: ConcurrencyLimit | int | None = None
    schedules: list[Schedule] = Field(default_factory=list)
    paused: bool = False
    triggers: list[dict[str, Any]] = Field(default_factory=list)
    build: Steps = None
    push: Steps = None
    pull: Steps = None

    @property
    def flow(self) -> str:
        """The flow's function."""
        return self.entrypoint.partition(":")[2]


class Pipelines(Strict):
    """The whole file."""

    name: str
    recipes: dict[str, dict[str, Any] | None]
    deployments: list[Deployment] = Field(default_factory=list)
    definitions: dict[str, Any] = Field(default_factory=dict)  # anchors
    build: Steps = None
    push: Steps = None
    pull: Steps = None


def check(path: Path | None = None) -> Pipelines:
    """The checked content of `pipelines.yaml`: every recipe and every deployment.

    Raises UserError for the first key, recipe, flow, parameter or value that does not exist.
    """
    path = path or project_root() / "pipelines.yaml"
    content = read_pipelines(path)
    try:
        pipelines = Pipelines.model_validate(content)
    except ValidationError as error:
        raise _explained(error, path) from error
    for name, recipe in pipelines.recipes.items():
        load_recipe(name, dict(_given_later(recipe)), path=path)
    seen: set[str] = set()
    for deployment in pipelines.deployments:
        name = f"{deployment.flow}/{deployment.name}"
        if name in seen:
            raise UserError(f"{path.name}: deployment {name!r} stands there twice")
        seen.add(name)
        _check_parameters(deployment, name, path)
    return pipelines


def _given_later(recipe: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Stand-ins for what a recipe leaves to the command line: an empty `data.path`."""
    data = (recipe or {}).get("data") or {}
    if data.get("source", "stories") != "stories" and not data.get("path"):
        yield "data.path", "."


def _check_parameters(deployment: Deployment, name: str, path: Path) -> None:
    """Refuses parameters that the flow does not take, and recipes that do not load."""
    accepted = _parameters_of(path.parent, deployment.entrypoint)
    for given in (deployment.parameters, *(s.parameters for s in deployment.schedules)):
        for parameter in given:
            if parameter not in accepted:
                raise UserError(
                    f"{path.name}, deployment {name}: {unknown('parameter', parameter, accepted)}"
                )
        parameters = {**deployment.parameters, **given}
        overrides = parameters.get("overrides")
        if not isinstance(overrides, dict | None):
            raise UserError(
                f"{path.name}, deployment {name}: overrides={overrides!r}: it must map dotted keys "
                "to values, such as {train.max_steps: 100}"
            )
        if "recipe" in parameters:
            load_recipe(str(parameters["recipe"]), overrides, path=path)


def _parameters_of(root: Path, entrypoint: str) -> list[str]:
    """The parameters of the flow that an entrypoint names, read from its source."""
    file, _, function = entrypoint.partition(":")
    try:
        tree = ast.parse((root / file).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"entrypoint {entrypoint!r}: {root / file} does not exist") from error
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function not in functions:
        raise unknown(f"flow in {file}", function, functions)
    return [argument.arg for argument in functions[function].args.args]


def _explained(error: ValidationError, path: Path) -> UserError:
    """What is wrong first: a key that does not exist, with the nearest one, or else a value."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    keys = [part for part in first["loc"] if part not in _UNION_MEMBERS]
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)[1:]
    if first["type"] == "extra_forbidden":
        model = next((_MODELS[key] for key in reversed(keys[:-1]) if key in _MODELS), Pipelines)
        where = f"{path.name}, {place.rpartition('.')[0] or 'at the top'}"
        return UserError(f"{where}: {unknown('key', str(keys[-1]), model.model_fields)}")
    if first["type"] == "missing":
        return UserError(f"{path.name}: {place} is missing")
    return UserError(f"{path.name}: {place}={first['input']!r}: {first['msg']}")


_MODELS: dict[str | int, type[Strict]] = {
    "deployments": Deployment,
    "work_pool": WorkPool,
    "concurrency_limit": ConcurrencyLimit,
    "schedules": Schedule,
}
_UNION_MEMBERS = ("ConcurrencyLimit", "int", "float", "str")  # pydantic names them in its paths
