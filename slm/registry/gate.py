"""The gate: a version becomes champion only where the evidence says that it is better.

Challenger and champion are scored on the same held-out documents, those of the challenger's own
shards. What counts is the difference in bits per byte with its interval, from a bootstrap over the
documents; samples that are broken or copied veto, and so does a gap in the lineage. The verdict is
written into an audit log and on the version, and only then the alias moves, so a process that is
killed between two calls is made up for by asking again. A version that has its verdict is not
measured again until the champion or the gate's settings are others.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm import storage
from slm.config import RegistryConfig, data_root
from slm.errors import UserError
from slm.evaluation.intervals import PAIRED_RESAMPLES
from slm.records import Progress, silent
from slm.registry.assessment import Verdict, gate_settings, judged
from slm.registry.finding import CHALLENGER, CHAMPION, find_version
from slm.tracking.server import connect, default_uri, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

AUDIT = "audit.jsonl"
ROLLED_BACK = "rolled back"


# ---- commands ---------------------------------------------------------------------------------


@explained()
def promote(
    version: str,
    *,
    root: Path | None = None,
    uri: str | None = None,
    thresholds: RegistryConfig | None = None,
    force: str | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Judges a version against the champion; makes it the champion where it is better.

    A version that was rolled back stays so unless it is forced.

    Args:
        version: `models:/NAME@challenger` or `models:/NAME/VERSION`.
        thresholds: what it must show; a verdict by others does not stand. None: any verdict stands,
            and where there is none, those of the run's own config hold.
        force: a reason to promote whatever the gate finds; it is recorded.

    Raises:
        UserError: there is no such version, or its held-out documents are gone.
        CorruptionError: the weights are not those that were evaluated. Nothing forces these.
    """
    root = root or data_root()
    client = connect(uri or default_uri(root))
    with storage.lock(storage.make_folder(root / "mlflow") / "registry.lock"):
        entry = find_version(client, version)
        champion = _champion(client, entry.name)
        standing = _standing(entry, champion, thresholds, force)
        verdict = standing or judged(client, entry, champion, root, thresholds, force, progress)
        return _carried_out(client, verdict, standing, root)


@explained()
def judge(
    version: str,
    *,
    root: Path | None = None,
    uri: str | None = None,
    thresholds: RegistryConfig | None = None,
    progress: Progress = silent,
) -> Verdict:
    """What `promote` would find. Nothing is written and nothing moves."""
    root = root or data_root()
    client = connect(uri or default_uri(root))
    entry = find_version(client, version)
    champion = _champion(client, entry.name)
    standing = _standing(entry, champion, thresholds)
    return standing or judged(client, entry, champion, root, thresholds, None, progress)


@explained()
def carry_out(verdict: Verdict, *, root: Path | None = None, uri: str | None = None) -> Verdict:
    """Does what a verdict of `judge` says, after a person has seen it: see `answered`.

    Raises UserError where it promotes and the champion has changed since: it says nothing of the
    new one.
    """
    root = root or data_root()
    client = connect(uri or default_uri(root))
    name = f"models:/{verdict.model}/{verdict.version}"
    with storage.lock(storage.make_folder(root / "mlflow") / "registry.lock"):
        entry = find_version(client, name)
        champion = _champion(client, verdict.model)
        now = str(champion.version) if champion else None
        if verdict.decision == "promoted" and now not in (verdict.champion, verdict.version):
            raise UserError(f"the champion is version {now} by now: `slm promote {name}` again")
        return _carried_out(client, verdict, _standing(entry, champion, None), root)


def answered(verdict: Verdict, *, approved: bool, who: str, comment: str = "") -> Verdict:
    """The verdict after a person was asked: a no refuses the version, a yes only stands in it."""
    said = f"{'approved' if approved else 'rejected'} by {who or 'nobody named'}"
    said += f": {comment}" if comment else ""
    changes: dict[str, Any] = {"approval": said}
    if not approved:
        changes |= {"decision": "refused", "reason": f"{said}; {verdict.reason}"}
    return verdict.model_copy(update=changes)


@explained()
def rollback(model: str, *, root: Path | None = None, uri: str | None = None) -> tuple[str, str]:
    """Makes the champion's predecessor champion again; returns (its version, the one that left).

    Raises UserError where there is no predecessor.
    """
    root = root or data_root()
    client = connect(uri or default_uri(root))
    with storage.lock(storage.make_folder(root / "mlflow") / "registry.lock"):
        leaving = find_version(client, f"models:/{model}@{CHAMPION}")
        before = leaving.tags.get("slm.previous_champion")
        if before is None:
            raise UserError(f"{model} version {leaving.version} followed no other champion")
        find_version(client, f"models:/{model}/{before}")
        _log(root, {"decision": ROLLED_BACK, "model": model, "from": str(leaving.version),
                    "to": before})  # fmt: skip
        client.set_model_version_tag(model, leaving.version, "slm.decision", ROLLED_BACK)
        client.set_registered_model_alias(model, CHAMPION, before)
    return before, str(leaving.version)


def _standing(
    entry: "ModelVersion",
    champion: "ModelVersion | None",
    thresholds: RegistryConfig | None,
    force: str | None = None,
) -> Verdict | None:
    """The verdict that a version has, where it still holds; None where it is to be judged.

    A person's word holds whatever the gate's settings are by now.
    """
    if "slm.verdict" not in entry.tags:
        return None
    verdict = Verdict.model_validate_json(entry.tags["slm.verdict"])
    rival = str(champion.version) if champion else None
    if rival == str(entry.version):
        return verdict
    if force:
        return None
    if entry.tags.get("slm.decision") == ROLLED_BACK:
        reason = "it was rolled back; --force REASON makes it champion again"
        return verdict.model_copy(update={"decision": "refused", "reason": reason})
    same = thresholds is None or verdict.limits == gate_settings(thresholds)
    return verdict if verdict.champion == rival and (same or verdict.approval) else None


# ---- writing it down --------------------------------------------------------------------------


def _champion(client: "MlflowClient", model: str) -> "ModelVersion | None":
    if CHAMPION not in client.get_registered_model(model).aliases:
        return None
    return client.get_model_version_by_alias(model, CHAMPION)


def _carried_out(
    client: "MlflowClient", verdict: Verdict, standing: Verdict | None, root: Path
) -> Verdict:
    """Writes a verdict down, unless it stands, and moves the alias; it is `reused` if neither was.

    What a killed call has not finished is therefore told as new by the next one.
    """
    if standing != verdict:
        _announce(client, verdict, root)
    moved = verdict.decision == "promoted" and _crown(client, verdict.model, verdict.version)
    return verdict.model_copy(update={"reused": standing == verdict and not moved})


def _announce(client: "MlflowClient", verdict: Verdict, root: Path) -> None:
    """The verdict in the audit log, and as a description and tags of the version.

    The tag that holds it comes last: where it stands, all the rest was written.
    """
    _log(root, verdict.model_dump(mode="json"))
    client.update_model_version(verdict.model, verdict.version, describe(verdict))
    tags = {
        "slm.decision": f"{verdict.decision} (forced)" if verdict.forced else verdict.decision,
        "slm.reason": verdict.reason,
        "slm.held_out_sha256": verdict.documents_sha256,
    }
    if verdict.decision == "promoted" and verdict.champion:
        tags["slm.previous_champion"] = verdict.champion
    tags["slm.verdict"] = verdict.model_dump_json()
    for key, value in tags.items():
        client.set_model_version_tag(verdict.model, verdict.version, key, value)


def describe(verdict: Verdict, title: str = "") -> str:
    """The verdict in Markdown; without a champion there is nothing to compare with.

    `title`: what to say instead of the decision, where that is not carried out yet.
    """
    rows = [("this version", f"{verdict.val_bpb:.4f}")]
    how = ""
    if verdict.champion_bpb is not None:
        rows += [
            (f"champion, version {verdict.champion}", f"{verdict.champion_bpb:.4f}"),
            ("difference", f"{verdict.difference:+.4f}"),
            ("95 % interval", f"{verdict.low:+.4f} … {verdict.high:+.4f}"),
            ("margin", f"{verdict.margin:g}"),
        ]
        how = f", paired bootstrap with {PAIRED_RESAMPLES:,} resamples"
    lines = [
        f"**{title or verdict.decision.capitalize()}**: {verdict.reason}.",
        "",
        "| | bits a byte |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        f"{verdict.documents} held-out documents, sha256 `{verdict.documents_sha256[:12]}`{how}.",
        "",
        *(f"- Veto: {veto}." for veto in verdict.vetoes),
    ]
    if verdict.approval:
        lines.append(f"- Asked: {verdict.approval}")
    if verdict.forced:
        lines.append(f"- Forced: {verdict.forced}")
    return "\n".join(lines).rstrip()


def _log(root: Path, entry: dict[str, Any]) -> None:
    """Appends to the audit log, unless its last line says the same: a call that is made again."""
    path = root / "mlflow" / AUDIT
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    if lines:
        last = json.loads(lines[-1])
        last.pop("time")
        if last == entry:
            return
    lines.append(json.dumps({"time": time.time(), **entry}, ensure_ascii=False))
    storage.write_file(path, "\n".join(lines) + "\n")


def _crown(client: "MlflowClient", model: str, version: str) -> bool:
    """Moves the alias, and then takes `challenger` from the version that is none any more.

    Returns whether there was anything to move.
    """
    aliases = client.get_registered_model(model).aliases
    crowned = str(aliases.get(CHAMPION)) == str(version)
    challenges = str(aliases.get(CHALLENGER)) == str(version)
    if not crowned:
        client.set_registered_model_alias(model, CHAMPION, version)
    if challenges:
        client.delete_registered_model_alias(model, CHALLENGER)
    return challenges or not crowned
