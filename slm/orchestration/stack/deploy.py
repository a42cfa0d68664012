"""`pipelines.yaml` → the deployments of a server, on which what people have changed is kept.

An entry of the file is deployed when it has changed since it was deployed last; until then what was
changed on the Prefect page stays. Schedules are compared one by one, so that one that somebody has
paused stays paused. What has left the file is removed, if it was deployed from there.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, VariableCreate, VariableUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import Flow, load_flow_from_entrypoint

from slm.config import data_root
from slm.errors import SlmError
from slm.orchestration.stack import deployments
from slm.recipes import read_pipelines
from slm.storage import make_folder, sha256_json

PREFIX = "slm_deployed_"  # of the server's variables that hold a `Deployed` each
PAGE = 200  # items of one answer of the server

Schedules = Sequence[Mapping[str, Any]]


@dataclass
class Deployed:
    """What was deployed of an entry of the file; kept on the server."""

    name: str
    entry: str = ""  # a digest of the entry, without its schedules
    page: str = ""  # a digest of the deployment as it then was
    schedules: dict[str, list[Any]] = field(default_factory=dict)  # slug → digest, whether active

    @property
    def variable(self) -> str:
        return PREFIX + sha256_json(self.name)[:12]


def deploy(api: str, environment: Mapping[str, str], path: Path) -> list[str]:
    """Make a server's deployments those of the file; returns lines for the user.

    Raises UserError where the file is wrong, SlmError where Prefect refuses it.
    """
    names = list(deployments.check(path))
    content = deployments.with_sweeps(read_pipelines(path))
    entries = dict(zip(names, content.get("deployments") or [], strict=True))
    lines = []
    with SyncPrefectClient(api) as client:
        before, records = _read_deployments(client), _read_records(client)
        digests = {name: _digest(entry, content, path) for name, entry in entries.items()}
        changed = [
            name
            for name in names
            if name not in before or name not in records or records[name].entry != digests[name]
        ]
        if changed:
            _run_prefect(environment, content, [entries[name] for name in changed], path)
            lines.append(f"deployed  {', '.join(changed)}")
        after = _read_deployments(client)
        for name in names:
            record = records.get(name) or Deployed(name)
            if name in changed:
                lines += _restore(client, record, before.get(name), after[name])
                record.entry, record.page = digests[name], _page(after[name])
            lines += _match(client, record, after[name], entries[name].get("schedules") or [])
            _write(client, record)
        for name in sorted(records.keys() - entries.keys()):
            if name in after:
                client.delete_deployment(after.pop(name).id)
                lines.append(f"removed   {name}, which {path.name} has no longer")
            client.delete_variable_by_name(records[name].variable)
    left = [name for name, made in after.items() if name not in entries and _is_from(made, path)]
    if left:
        command = "`slm prefect deployment delete NAME` removes one"
        lines.append(f"left      {', '.join(left)}: not in {path.name}; {command}")
    return lines


# ---- deployments ------------------------------------------------------------------------------


def _digest(entry: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> str:
    """Of all that Prefect makes a deployment from: the file's entry, the flow, the folder."""
    entrypoint = entry["entrypoint"]
    where = f"{path.parent / entrypoint}" if ":" in entrypoint else entrypoint
    flow: Flow[..., Any] = load_flow_from_entrypoint(where, use_placeholder_flow=False)
    own = {key: value for key, value in entry.items() if key != "schedules"}
    parameters = flow.parameters.model_dump(mode="json")
    made_from = [own, parameters, content.get("pull"), str(path.parent.resolve())]
    return sha256_json(json.loads(json.dumps(made_from, default=str)))


def _run_prefect(
    environment: Mapping[str, str], content: Mapping[str, Any], entries: Schedules, path: Path
) -> None:
    """Let Prefect deploy some entries, without their schedules, of which it resumes paused ones."""
    common = {k: v for k, v in content.items() if k not in (*deployments.OURS, "deployments")}
    own = [{k: v for k, v in entry.items() if k != "schedules"} for entry in entries]
    file = make_folder(data_root() / "prefect") / "deploy.yaml"
    file.write_text(yaml.safe_dump({**common, "deployments": own}, sort_keys=False), "utf-8")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        [*command, "--prefect-file", str(file.resolve())],
        cwd=path.parent,
        env=dict(environment),
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        raise SlmError(f"prefect deploy failed: {(done.stdout + done.stderr).strip()}")
    file.unlink()


def _page(deployment: DeploymentResponse) -> str:
    """A digest of what people may change on the page."""
    shown = deployment.model_dump(
        mode="json",
        include={"parameters", "description", "tags", "job_variables", "concurrency_options"},
    )
    limit = deployment.global_concurrency_limit
    return sha256_json([shown, limit.limit if limit else None])


def _restore(
    client: SyncPrefectClient,
    record: Deployed,
    before: DeploymentResponse | None,
    after: DeploymentResponse,
) -> Iterator[str]:
    """Keep a deployment paused that was; report what the file has replaced."""
    if before is None:
        return
    if before.paused and not after.paused:
        client.pause_deployment(after.id)
    if record.page and record.page != _page(before):
        yield f"replaced  what was changed of {record.name} on the Prefect page: the file is newer"


def _is_from(deployment: DeploymentResponse, path: Path) -> bool:
    """Whether a deployment starts in the folder of the file."""
    return str(path.parent.resolve()) in json.dumps(deployment.pull_steps or [])


def _read_deployments(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """All deployments of a server by their names, such as `pipeline/quickstart`."""
    flows: dict[Any, str] = {}
    while len(batch := client.read_flows(limit=PAGE, offset=len(flows))):
        flows |= {flow.id: flow.name for flow in batch}
    made: list[DeploymentResponse] = []
    while batch_of := client.read_deployments(limit=PAGE, offset=len(made)):
        made += batch_of
    return {f"{flows[deployment.flow_id]}/{deployment.name}": deployment for deployment in made}


# ---- schedules --------------------------------------------------------------------------------


def _match(
    client: SyncPrefectClient, record: Deployed, deployment: DeploymentResponse, given: Schedules
) -> Iterator[str]:
    """Make a deployment's schedules those of the file, where people have not changed them."""
    known, record.schedules = record.schedules, {}
    for number, fields in enumerate(given, start=1):
        slug = fields.get("slug") or f"schedule-{number}"
        where = f"schedule {slug!r} of {record.name}"
        timing = sha256_json({k: str(v) for k, v in fields.items() if k not in ("active", "slug")})
        active = fields.get("active") is not False
        record.schedules[slug] = [timing, active]
        was_timing, was_active = known.pop(slug, ["", None])
        schedule = deployments.schedule_of(fields)
        existing = _find(deployment.schedules, slug, schedule)
        parameters = fields.get("parameters") or {}
        if existing is None and timing == was_timing:
            yield f"kept      {where} was deleted on the Prefect page"
        elif existing is None:
            new = DeploymentScheduleCreate(
                schedule=schedule, active=active, parameters=parameters, slug=slug
            )
            client.create_deployment_schedules(deployment.id, [new])
        else:
            decided = active if was_active not in (None, active) else None
            if timing != was_timing or decided is not None:
                client.update_deployment_schedule(
                    deployment.id,
                    existing.id,
                    active=decided,
                    schedule=schedule if timing != was_timing else None,
                    parameters=parameters if timing != was_timing else None,
                    slug=slug,
                )
            if decided is None and existing.active != active:
                yield f"kept      {where} is {_word(existing.active)}, as on the Prefect page"
    for slug in known:  # what has left the file
        for schedule_left in deployment.schedules:
            if schedule_left.slug == slug:
                client.delete_deployment_schedule(deployment.id, schedule_left.id)
                yield f"removed   schedule {slug!r} of {record.name}"


def _find(
    schedules: Sequence[DeploymentSchedule], slug: str, schedule: Any
) -> DeploymentSchedule | None:
    """The schedule of a slug; older ones may have none."""
    for existing in schedules:
        if existing.slug == slug or (existing.slug is None and existing.schedule == schedule):
            return existing
    return None


def _word(active: bool) -> str:
    return "active" if active else "paused"


# ---- what was deployed last -------------------------------------------------------------------


def _read_records(client: SyncPrefectClient) -> dict[str, Deployed]:
    records: dict[str, Deployed] = {}
    query = {"variables": {"name": {"like_": PREFIX}}, "limit": PAGE}
    while batch := client.request(
        "POST", "/variables/filter", json={**query, "offset": len(records)}
    ).json():
        for variable in batch:
            record = Deployed(**variable["value"])
            records[record.name] = record
    return records


def _write(client: SyncPrefectClient, record: Deployed) -> None:
    value = asdict(record)
    existing = client.read_variable_by_name(record.variable)
    if existing is None:
        client.create_variable(VariableCreate(name=record.variable, value=value, tags=["slm"]))
    elif existing.value != value:
        client.update_variable(VariableUpdate(name=record.variable, value=value))
