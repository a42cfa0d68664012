"""What a training starts from, in a plan: nothing is downloaded, converted or hashed for it."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, UserError
from slm.model.saved import MODEL, MODEL_FILES
from slm.planning.stage import Stage
from slm.records import (
    FileEntry,
    Imported,
    Parent,
    Record,
    model_uri,
    names_version,
    parse_version,
)
from slm.registry import initial
from slm.registry.initial import HUGGING_FACE, IMPORTED, Start
from slm.registry.tags import PREFIX
from slm.run_folder import CHECKPOINTS, DataRoot
from slm.source import hub, seen
from slm.tracking.server import tracking_uri
from slm.tracking.store import file_of, version_number, version_tags

NAME = "init_from"


def plan_start(
    config: PipelineConfig, root: Path, *, verify: bool
) -> tuple[PipelineConfig, Start | None, Stage]:
    """The config with the shape of what it starts from, that model, and its line of the plan.

    The line's key is the hash of the weights; None where that is not known before they are read.
    The model is None where not even its shape is known.

    Raises UserError where there is no such model, or the config states another shape.
    """
    text = config.train.init_from
    assert text is not None, "else the training starts from the seed"
    start, note = _find(config, text, root, verify)
    if start is None:
        return config, None, Stage(stage=NAME, action="to run", reasons=(note,))
    line = Stage(
        stage=NAME,
        action="reused" if start.parent else "to run",
        key=start.parent.key if start.parent else None,
        result=start.model,
        reasons=(note,) if note else (),
        assumed=bool(note and start.parent),
    )
    return initial.agreed(config, start), start, line


def _find(config: PipelineConfig, text: str, root: Path, verify: bool) -> tuple[Start | None, str]:
    """What `train.init_from` names, as far as it is known here, and what is assumed or missing."""
    if not text.startswith(HUGGING_FACE):
        if verify:
            return initial.resolve(config, root), ""
        return _version(config, text, root) if names_version(text) else (_run(text, root), "")
    if not initial.is_of_hub(text):
        return _folder(text, root, verify)
    if verify:
        start = initial.of_hub(text, root)
        return start, "" if start.parent else "its weights are downloaded and converted"
    return _of_hub(text, root)


def _run(text: str, root: Path) -> Start:
    folder = initial.folder_of_run(text, root)
    return initial.known(initial.parent_of_run(folder, _recorded(folder)), root)


def _recorded(folder: Path) -> Mapping[str, FileEntry]:
    """The files of a model's folder by its record; hashed where it has none."""
    if (folder / storage.RECORD).is_file():
        _, fields = storage.read_versioned(folder / storage.RECORD, sealed=True)
        files = Record.model_validate({k: fields.get(k) for k in ("key", "files")}).files
        if set(MODEL_FILES) <= files.keys():
            return files
    return storage.describe_files(folder, [folder / name for name in MODEL_FILES])


def _version(config: PipelineConfig, text: str, root: Path) -> tuple[Start | None, str]:
    """A version, by our own store, which is read without MLflow. A server is asked by a run."""
    uri = tracking_uri(config, root)
    store = file_of(uri)
    if store is None:
        return None, f"which version {text} is is known once its server is asked (--verify asks)"
    name, chosen = parse_version(text)
    number = version_number(store, name, chosen) if store.is_file() else None
    tags = version_tags(store, name, number) if number else None
    if not number or not tags:
        return initial.resolve(config, root), ""  # which names the nearest one
    weights_sha256 = tags.get(f"{PREFIX}weights_sha256", "")
    run = tags.get(f"{PREFIX}run", "")
    home, uri = DataRoot(root), model_uri(name, number)
    inside = home.path / "runs" / Path(run).name / CHECKPOINTS
    local = inside / Path(tags.get(f"{PREFIX}checkpoint", "")).name
    copy = home.mlflow / "models" / f"{name}-{number}-{weights_sha256[:12]}"
    for folder in (local, copy):
        with suppress(CorruptionError, OSError):
            files = _recorded(folder)
            if files[MODEL].sha256 == weights_sha256:
                parent = initial.parent_of_run(folder, files)
                named = parent.model_copy(update={"model": uri, "run": run})
                return initial.known(named, root), ""
    return None, f"the files of {uri} are fetched from the registry first"


def _folder(text: str, root: Path, verify: bool) -> tuple[Start | None, str]:
    """A Hugging Face folder: its import is known by the size and time of its files."""
    start = initial.of_folder(text, root)
    files = initial.files_of_folder(text)
    digests = seen.recall(root, files.values())
    if verify:
        digests = {path: storage.sha256_file(path) for path in files.values()}
    if len(digests) < len(files):
        return start, "its weights are read and converted"
    origin = {name: digests[path] for name, path in files.items()}
    key = initial.import_key(start.model, origin)
    folder = initial.import_folder(root, start.model, key)
    with suppress(CorruptionError):
        if imported := storage.read_record(folder, Imported, verify=False):
            parent = _named(imported, start.model)
            note = "" if verify else "known by the size and time of its files"
            return initial.known(parent, root), note
    return start, "its weights are read and converted"


def _named(imported: Imported, model: str) -> Parent:
    return initial.parent_of_import(imported.model_copy(update={"model": model}))


def _of_hub(text: str, root: Path) -> tuple[Start | None, str]:
    """A model of the hub, as it was imported last; the hub is asked by a run."""
    repo = initial.repository(text)
    prefix = f"{HUGGING_FACE}{repo.path}@"
    commit = str(repo.revision) if hub.is_commit(repo.revision) else ""
    known = [each for each in _imports(root) if each.model.startswith(prefix + commit)]
    if not known:
        return None, f"{text} is downloaded and converted: its shape is known then"
    newest = max(known, key=lambda each: each.path.stat().st_mtime)
    branch = repo.revision or "the main branch"
    note = "" if commit else f"{branch} is assumed to be commit {newest.model[-40:][:12]} still"
    return initial.known(initial.parent_of_import(newest), root), note


def _imports(root: Path) -> list[Imported]:
    records = []
    for folder in sorted((root / IMPORTED).glob("[!.]*")):
        with suppress(CorruptionError, UserError):
            if record := storage.read_record(folder, Imported, verify=False):
                records.append(record)
    return records
