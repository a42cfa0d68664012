"""The gate: a version becomes champion only where the evidence says that it is better.

Challenger and champion are scored on the same held-out documents, those of the challenger's own
shards. The difference in bits per byte decides, with its interval from a bootstrap over the
documents; samples that are broken or copied veto, and so do a gap in the lineage, a champion of
another dataset, a benchmark of `registry.benchmarks` that the champion does better, and a source
of `registry.margins` that it predicts better. The decision is written into an audit log and on the
version, and only then the alias moves, so a call after a killed one completes it. A version that
has its decision is not assessed again until the champion or the gate's settings are others.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm import storage
from slm.config import RegistryConfig, data_root
from slm.errors import UserError
from slm.evaluation.intervals import PAIRED_RESAMPLES
from slm.progress import Progress, automatic
from slm.records import model_uri, names_version, parse_version
from slm.registry.assessment import assess as assess_against
from slm.registry.assessment import gate_settings
from slm.registry.tags import PREFIX
from slm.registry.version import CHALLENGER, CHAMPION, DECISION_TAG, GateDecision, ModelVersion
from slm.registry.versions import candidate, find_alias, find_version, if_exists, only_model
from slm.tracking.server import connect, default_uri, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

AUDIT = "audit.jsonl"
ROLLED_BACK = "rolled back"


# ---- commands ---------------------------------------------------------------------------------


@explained()
@storage.hashing_once(anew=True)
def promote(
    version_uri: str | None = None,
    *,
    root: Path | None = None,
    uri: str | None = None,
    thresholds: RegistryConfig | None = None,
    force: str | None = None,
    progress: Progress = automatic,
) -> GateDecision:
    """Assesses a version against the champion; makes it the champion where it is better.

    A version that was rolled back stays so unless it is forced.

    Args:
        version_uri: `NAME@challenger`, `models:/NAME/VERSION`, a model's name, or a run; None: the
            challenger of the only model.
        uri: the tracking server that has it; None: the default one.
        thresholds: the gate's settings; a decision by others does not hold. None: any earlier
            decision holds, and where there is none, the settings of the run's own config.
        force: a reason to promote whatever the gate finds; it is recorded.

    Raises:
        UserError: there is no such version, or its held-out documents are gone.
        CorruptionError: the weights are not those that were evaluated. Nothing forces these.
    """
    with _locked_registry(root, uri) as (client, root):
        version = candidate(client, version_uri, root)
        champion = find_alias(client, version.name, CHAMPION)
        held = _decision_held(version, champion, thresholds, force)
        decision = held or assess_against(
            client, version, champion, root, thresholds, force, progress
        )
        return _carry_out(client, decision, held, root)


@explained()
@storage.hashing_once(anew=True)
def assess(
    version_uri: str,
    *,
    root: Path | None = None,
    uri: str | None = None,
    thresholds: RegistryConfig | None = None,
    progress: Progress = automatic,
) -> GateDecision:
    """What `promote` would decide. Nothing is written and nothing moves."""
    root = root or data_root()
    client = connect(uri or default_uri(root))
    version = find_version(client, version_uri)
    champion = find_alias(client, version.name, CHAMPION)
    held = _decision_held(version, champion, thresholds)
    return held or assess_against(client, version, champion, root, thresholds, None, progress)


@explained()
def carry_out(
    decision: GateDecision, *, root: Path | None = None, uri: str | None = None
) -> GateDecision:
    """Carry out a decision of `assess`, with a person's answer in it: see `with_answer`.

    Raises UserError where it promotes and the champion has changed since: it was not compared with
    the new one.
    """
    with _locked_registry(root, uri) as (client, root):
        version = find_version(client, decision.uri)
        champion = find_alias(client, decision.model, CHAMPION)
        number = champion.version if champion else None
        if decision.decision == "promoted" and number not in (decision.champion, decision.version):
            raise UserError(
                f"the champion is now version {number}: `slm promote {decision.uri}` again"
            )
        return _carry_out(client, decision, _decision_held(version, champion, None), root)


def with_answer(
    decision: GateDecision, *, approved: bool, who: str, comment: str = ""
) -> GateDecision:
    """The decision with a person's answer: a no refuses the version, a yes is only recorded."""
    answer = f"{'approved' if approved else 'rejected'} by {who or 'nobody named'}"
    answer += f": {comment}" if comment else ""
    changes: dict[str, Any] = {"approval": answer}
    if not approved:
        changes |= {"decision": "refused", "reason": f"{answer}; {decision.reason}"}
    return decision.model_copy(update=changes)


@explained()
def rollback(model: str | None = None, *, root: Path | None = None) -> tuple[str, str, str]:
    """Make the champion's predecessor champion again.

    Returns (model, its version, the one replaced).

    `model`: its name, or `models:/NAME`; None: the only one.

    Raises UserError where there is no predecessor.
    """
    with _locked_registry(root) as (client, root):
        model = parse_version(model)[0] if model and names_version(model) else model
        model = model or only_model(client)
        champion = find_version(client, model_uri(model, alias=CHAMPION))
        before = champion.tags.get("previous_champion")
        if before is None:
            raise UserError(f"{champion.uri} has no predecessor: it was the first champion")
        if if_exists(client.get_model_version, model, before) is None:
            raise UserError(
                f"the champion before {champion.uri} was version {before}, which was deleted; "
                f"`slm promote models:/{model}/VERSION` makes another one the champion"
            )
        _log(root, {"decision": ROLLED_BACK, "model": model, "from": champion.version,
                    "to": before})  # fmt: skip
        client.set_model_version_tag(model, champion.version, f"{PREFIX}decision", ROLLED_BACK)
        client.set_registered_model_alias(model, CHAMPION, before)
    return model, before, champion.version


def _decision_held(
    version: ModelVersion,
    champion: ModelVersion | None,
    thresholds: RegistryConfig | None,
    force: str | None = None,
) -> GateDecision | None:
    """The decision that a version has, where it still holds; None where it is to be assessed.

    A person's answer holds whatever the gate's settings have become.
    """
    decision = version.gate_decision
    if decision is None:
        return None
    number = champion.version if champion else None
    if number == version.version:
        return decision
    if force:
        return None
    if version.tags.get("decision") == ROLLED_BACK:
        reason = "it was rolled back; --force REASON makes it champion again"
        return decision.model_copy(update={"decision": "refused", "reason": reason})
    same = thresholds is None or decision.limits == gate_settings(thresholds)
    return decision if decision.champion == number and (same or decision.approval) else None


@contextmanager
def _locked_registry(
    root: Path | None, uri: str | None = None
) -> Iterator[tuple["MlflowClient", Path]]:
    """A client of the registry, and the data folder, while no other command changes aliases."""
    root = root or data_root()
    client = connect(uri or default_uri(root))
    with storage.lock(storage.make_folder(root / "mlflow") / "registry.lock"):
        yield client, root


# ---- recording --------------------------------------------------------------------------------


def _carry_out(
    client: "MlflowClient", decision: GateDecision, held: GateDecision | None, root: Path
) -> GateDecision:
    """Record a decision, unless the version has it, and move the alias.

    `reused` is set where neither had to be done: what a killed call left undone is reported as new
    by the call that completes it.
    """
    if held != decision:
        _record(client, decision, root)
    moved = decision.decision == "promoted" and _move_alias(
        client, decision.model, decision.version
    )
    return decision.model_copy(update={"reused": held == decision and not moved})


def _record(client: "MlflowClient", decision: GateDecision, root: Path) -> None:
    """Write the decision into the audit log, and as a description and tags of the version.

    The tag that holds it comes last: where it is set, all the rest was written.
    """
    _log(root, decision.model_dump(mode="json"))
    client.update_model_version(decision.model, decision.version, describe(decision))
    tags = {
        "decision": f"{decision.decision} (forced)" if decision.forced else decision.decision,
        "reason": decision.reason,
        "held_out_sha256": decision.documents_sha256,
    }
    if decision.decision == "promoted" and decision.champion:
        tags["previous_champion"] = decision.champion
    tags[DECISION_TAG] = decision.model_dump_json()
    for key, value in tags.items():
        client.set_model_version_tag(decision.model, decision.version, PREFIX + key, value)


def describe(decision: GateDecision, title: str = "") -> str:
    """The decision in Markdown; without a champion there is no comparison.

    `title`: replaces the decision's word, where it is not carried out yet.
    """
    rows = [("this version", f"{decision.val_bpb:.4f}")]
    rows += [(name, f"{value:.4f}") for name, value in decision.baselines.items()]
    how = ""
    if decision.champion_bpb is not None:
        rows += [
            (f"champion, version {decision.champion}", f"{decision.champion_bpb:.4f}"),
            ("difference", f"{decision.difference:+.4f}"),
            ("95 % interval", f"{decision.low:+.4f} … {decision.high:+.4f}"),
            ("margin", f"{decision.margin:g}"),
        ]
        how = f", paired bootstrap with {PAIRED_RESAMPLES:,} resamples"
    lines = [
        f"**{title or decision.decision.capitalize()}**: {decision.reason}.",
        "",
        "| | bits per byte |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        f"{decision.documents} held-out documents, sha256 `{decision.documents_sha256[:12]}`{how}.",
        "",
        *_source_table(decision),
        *(f"- Benchmark {task.task}: {task.comparison}." for task in decision.benchmarks),
        *(f"- Veto: {veto}." for veto in decision.vetoes),
        *(f"- Warning: {warning}." for warning in decision.warnings),
    ]
    if decision.approval:
        lines.append(f"- Approval: {decision.approval}")
    if decision.forced:
        lines.append(f"- Forced: {decision.forced}")
    return "\n".join(lines).rstrip()


def _source_table(decision: GateDecision) -> list[str]:
    """The sources of a mixture as a table of Markdown; nothing of one source."""
    if not decision.sources:
        return []
    names = ["source", "documents", "this version"]
    if decision.champion_bpb is not None:
        names += [f"champion, version {decision.champion}", "difference", "95 % interval", "margin"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for each in decision.sources:
        cells = [each.source, f"{each.documents:,}", f"{each.val_bpb:.4f}"]
        if decision.champion_bpb is not None:
            margin = "none" if each.margin is None else f"{each.margin:g}"
            cells += [f"{each.champion_bpb:.4f}", f"{each.difference:+.4f}", each.interval, margin]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _log(root: Path, entry: dict[str, Any]) -> None:
    """Append to the audit log, unless its last line is the same: a call that is repeated."""
    path = root / "mlflow" / AUDIT
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    if lines:
        last = json.loads(lines[-1])
        last.pop("time")
        if last == entry:
            return
    lines.append(storage.to_json({"time": time.time(), **entry}, ensure_ascii=False))
    storage.write_file(path, "\n".join(lines) + "\n")


def _move_alias(client: "MlflowClient", model: str, version: str) -> bool:
    """Make a version the champion, and then take `challenger` from it.

    Returns whether there was anything to move.
    """
    aliases = client.get_registered_model(model).aliases
    is_champion = str(aliases.get(CHAMPION)) == version
    is_challenger = str(aliases.get(CHALLENGER)) == version
    if not is_champion:
        client.set_registered_model_alias(model, CHAMPION, version)
    if is_challenger:
        client.delete_registered_model_alias(model, CHALLENGER)
    return is_challenger or not is_champion
