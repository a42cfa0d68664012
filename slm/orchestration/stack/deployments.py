"""A strict reading of `pipelines.yaml`.

Prefect ignores keys that it does not know, so a misspelt `concurency_limit` would silently deploy
without one. Here the keys are those of Prefect's own models of its deploy file, and any other is
refused; recipes, overrides and parameters are checked as a flow run would.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.cli.deploy._models import (
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule, construct_schedule
from prefect.exceptions import MissingFlowError, ParameterTypeError, ScriptError
from prefect.flows import Flow, load_flow_from_entrypoint
from pydantic import BaseModel, ValidationError

from slm.config import PIPELINES, project_root
from slm.errors import UserError, first_invalid, plain, unknown
from slm.recipes import check_recipes, load_recipe, read_pipelines

OURS = (
    "recipes",
    "sweeps",
    "definitions",
)  # keys at the top that Prefect ignores; the second is for anchors
REQUIRED = ("name", "entrypoint", "description", "version", "work_pool")


def check(path: Path | None = None) -> dict[str, DeploymentConfig]:
    """The deployments of `pipelines.yaml` by their names, such as `pipeline/quickstart`.

    Raises UserError for the first key, recipe, flow, parameter or value that does not exist.
    """
    path = path or project_root() / PIPELINES
    content = read_pipelines(path)
    parts = list(_parts(content))
    for place, part, model in parts:
        keys = [*model.model_fields, *(OURS if model is PrefectYamlModel else ())]
        for key in part:
            if key not in keys:
                raise UserError(
                    f"{path.name}, {place or 'at the top'}: {unknown('key', key, keys)}"
                )
    for place, part, model in parts:
        _check_values(f"{place}." if place else "", part, model, path)
    check_recipes(path)
    deployments: dict[str, DeploymentConfig] = {}
    for fields in content.get("deployments") or []:
        flow = _load_flow(path.parent, fields["entrypoint"])
        name = f"{flow.name}/{fields['name']}"
        if name in deployments:
            raise UserError(f"{path.name}: deployment {name!r} is defined twice")
        deployments[name] = DeploymentConfig.model_validate(fields)
        schedules = fields.get("schedules") or []
        for schedule in ({}, *schedules):
            given = {**(fields.get("parameters") or {}), **(schedule.get("parameters") or {})}
            _check_parameters(flow, given, f"{path.name}, deployment {name}", path)
        _check_schedules(schedules, f"{path.name}, deployment {name}")
    return deployments


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], type[BaseModel]]]:
    """Every mapping of the file with its place and Prefect's model of it, the inner ones first."""
    for number, deployment in enumerate(content.get("deployments") or []):
        place = f"deployments[{number}]"
        limit = deployment.get("concurrency_limit")
        if isinstance(limit, dict):
            yield f"{place}.concurrency_limit", limit, ConcurrencyLimitConfig
        for index, schedule in enumerate(deployment.get("schedules") or []):
            yield f"{place}.schedules[{index}]", schedule, RawScheduleConfig
        yield f"{place}.work_pool", deployment.get("work_pool") or {}, WorkPoolConfig
        yield place, deployment, DeploymentConfig
    yield "", content, PrefectYamlModel


def _check_values(place: str, part: Mapping[str, Any], model: type[BaseModel], path: Path) -> None:
    """Refuse a value that Prefect refuses, and a deployment without one of ours."""
    required = REQUIRED if model is DeploymentConfig else ()
    if missing := [name for name in required if not part.get(name)]:
        raise UserError(f"{path.name}: {place}{missing[0]} is missing")
    try:
        model.model_validate(part)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise UserError(f"{path.name}: {place.rstrip('.')}: {plain(first['msg'])}") from error
        key, rule = str(first["loc"][0]), plain(first["msg"])
        raise UserError(f"{path.name}: {place}{key}={part.get(key)!r}: {rule}") from error


def schedule_of(fields: Mapping[str, Any]) -> Any:
    """A schedule of the file as Prefect's. Raises ValueError."""
    names = ("cron", "interval", "rrule", "anchor_date", "timezone")
    schedule = construct_schedule(
        **{name: fields[name] for name in names if fields.get(name) is not None}
    )
    if isinstance(schedule, CronSchedule) and fields.get("day_or") is not None:
        schedule.day_or = fields["day_or"]
    return schedule


def _check_schedules(schedules: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse schedules that are none, and two of one slug."""
    slugs = [fields["slug"] for fields in schedules if fields.get("slug")]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise UserError(f"{where}: two schedules have the slug {slug!r}: rename one")
    for fields in schedules:
        try:
            schedule_of(fields)
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()
            detail = first_invalid(error) if isinstance(error, ValidationError) else reason[0]
            raise UserError(f"{where}: schedule {dict(fields)}: {detail}") from error


def _load_flow(root: Path, entrypoint: str) -> Flow[..., Any]:
    """The flow of `flows/pipeline.py:pipeline`, or of `slm.orchestration.pipeline.pipeline`."""
    file, colon, _ = entrypoint.rpartition(":")
    if colon and not (root / file).is_file():
        raise UserError(f"entrypoint {entrypoint!r}: {root / file} does not exist")
    if not colon and "." not in entrypoint:
        raise UserError(
            f"entrypoint {entrypoint!r}: name a flow by its module or by its file, such as "
            "slm.orchestration.pipeline.pipeline or flows/pipeline.py:pipeline"
        )
    try:
        where = f"{root / entrypoint}" if colon else entrypoint
        return load_flow_from_entrypoint(where, use_placeholder_flow=False)
    except (MissingFlowError, ScriptError, ImportError) as error:
        raise UserError(f"entrypoint {entrypoint!r}: {error}") from error


def _check_parameters(
    flow: Flow[..., Any], given: Mapping[str, Any], where: str, path: Path
) -> None:
    """Refuse parameters that the flow does not take, and a recipe that does not load."""
    for name in given:
        if name not in flow.parameters.properties:
            raise UserError(f"{where}: {unknown('parameter', name, flow.parameters.properties)}")
    overrides = given.get("overrides")
    if not isinstance(overrides, dict | None):
        raise UserError(
            f"{where}: overrides={overrides!r}: it must map dotted keys to values, such as "
            "{train.max_steps: 100}"
        )
    logging.getLogger("prefect.flows").setLevel(logging.CRITICAL)  # which logs what it raises
    try:
        flow.validate_parameters(dict(given))
    except ParameterTypeError as error:
        lines = (line.removeprefix(" - ").partition(": ") for line in str(error).splitlines())
        wrong = "; ".join(f"{name}: {plain(text)}" for name, _, text in lines if text)
        raise UserError(f"{where}: {wrong or error}") from error
    if "recipe" in given:
        load_recipe(given["recipe"], overrides, path=path)
