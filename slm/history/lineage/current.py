"""What is here now, the data, the code and the machine, compared with what was recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from slm import storage
from slm.config import DataConfig
from slm.errors import CorruptionError, UserError
from slm.history.lineage.link import Notes, Status, status_of
from slm.records import Derivation
from slm.run_folder import RunFolder
from slm.source.files import find_files
from slm.training import provenance

ARITHMETIC = ("torch", "cpu_capability", "cpu_kind", "gpu")  # another one rounds otherwise
WRITER = ("pyarrow",)  # another one writes other parquet files of the same documents
MACHINE = ("python", *ARITHMETIC, *WRITER, "packages_sha256")  # bits may depend on it


def compare_origin(data: DataConfig, recorded: Mapping[str, str]) -> Status:
    """Local files now, compared with those that were read."""
    try:
        base, layout = find_files(data)
        files = {path for paths in layout.files.values() for path in paths}
        files |= {base / name for name in recorded if (base / name).is_file()}
        current = {name: e.sha256 for name, e in storage.describe_files(base, files).items()}
    except (UserError, OSError) as error:
        return "gone", (str(error),)
    notes = [f"{base / name}: missing" for name in recorded if name not in current]
    if notes and len(notes) == len(recorded):
        return "gone", tuple(notes)
    notes += [f"{base / name}: was not there" for name in current if name not in recorded]
    notes += [
        f"{base / name}: sha256 {current[name][:12]}…, recorded {digest[:12]}…"
        for name, digest in recorded.items()
        if current.get(name, digest) != digest
    ]
    return status_of(notes)


def code_status(facts: Mapping[str, Any]) -> Status:
    """The code that a run was trained with, compared with the code now.

    The same modules are the same code, whatever the commit. Changes that are in no commit are kept
    nowhere but in the working tree or the installed package, and only their hash is known: code
    that was dirty and is not here counts as gone.
    """
    commit, modules = facts.get("commit"), facts.get("modules_sha256")
    now = provenance.code_state()
    if modules and modules == now.get("modules_sha256"):
        return "unchanged", ()
    if facts.get("dirty"):
        return "gone", (f"it had changes that are in no commit, on top of {commit}",)
    if modules and (commit is None or now["commit"] is None):
        was = f", which was commit {commit}" if commit else ", whose commit is not known"
        return "changed", (f"the modules of the code now are others than then{was}",)
    if commit is None:
        return "not checked", ("no commit was recorded",)
    if now["commit"] is None:
        return "not checked", ("this code is not under version control",)
    notes = []
    if now["commit"] != commit:
        notes.append(f"the code is now at {now['commit']}: git checkout {commit}")
    if now["dirty"]:
        notes.append("the code now has changes that are in no commit")
    return status_of(notes)


def machine_differences(facts: Mapping[str, Any], names: Sequence[str] = MACHINE) -> Notes:
    """What differs between the machine of a run and this one, of what its bits may depend on."""
    now = provenance.environment()
    then, now = _with_kind(facts, facts), _with_kind(now, facts)
    return tuple(
        "other packages are installed" if name == "packages_sha256"
        else f"{name} is {now.get(name)}, was {then[name]}"
        for name in names
        if name in then and then[name] != now.get(name)
    )  # fmt: skip


def _with_kind(environment: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """An environment whose `cpu_kind` is the CPU's model where none was recorded."""
    if "cpu_kind" in recorded or "cpu" not in recorded:
        return dict(environment)
    return {**environment, "cpu_kind": environment["cpu"].partition(" × ")[0]}


def derived_status(run: RunFolder, other: RunFolder, derived: Derivation) -> Status:
    """Whether the losses of both runs are the same up to the step at which one was made."""
    if not other.exists:
        return "not checked", (f"{derived.run} is gone: its steps are trained again to reproduce",)
    try:
        if other.settings.key != derived.key:
            return "changed", (f"{derived.run} is another run now",)
        losses = [_losses(each, derived.step) for each in (run, other)]
    except CorruptionError as error:
        return "changed", (str(error),)
    if losses[0] != losses[1]:
        return "changed", (f"its losses are not those of {derived.run}",)
    return "unchanged", ()


def _losses(run: RunFolder, last: int) -> dict[int, float]:
    """The loss of each step of a run up to one."""
    steps = (e for e in run.journal if e["event"] == "step" and e["step"] <= last)
    return {entry["step"]: entry["train_loss"] for entry in steps}
