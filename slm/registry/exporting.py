"""`slm.export`: a model in the format of other programs, checked before it is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

import slm
from slm import storage
from slm.errors import CorruptionError, UserError
from slm.records import Export, FileEntry, names_version
from slm.registry.opening import reference_to
from slm.run_folder import DataRoot, RunFolder, run_of_checkpoint
from slm.source.stories import stories
from slm.tokens.shards.reading import documents

if TYPE_CHECKING:
    from slm.model.saved import LoadedModel
    from slm.registry.opening import Given
    from slm.tokens.tokenizer.bpe import Ids, Tokenizer

Format = Literal["hf", "gguf"]
DTYPES = {"hf": ("f32", "f16", "bf16"), "gguf": ("f32", "f16", "bf16", "q8_0")}
SUFFIX = ".gguf"
MODELFILE = "Modelfile"
MAX_DOCUMENTS = 64  # that logits and vocabulary are compared on
COPIED_BYTES = 1 << 24


def export(
    model: "Given",
    target: str | Path,
    *,
    to: Format | None = None,
    dtype: str = "f32",
    push: str | None = None,
    root: Path | None = None,
) -> Export:
    """Write a model for other programs: a Hugging Face folder, or one GGUF file.

    >>> slm.export("slm@champion", "out")
    >>> slm.export("slm@champion", "out.gguf", dtype="q8_0").parity

    What was written is read back and compared with the model: logits and greedy text on held-out
    documents of its run, and the vocabulary. Where they do not match nothing is left.

    Args:
        model: a run, as of `open_run`, of which the best checkpoint is taken; a model version; or
            a folder with a model's files.
        target: a folder that does not exist yet; of GGUF, such a file.
        to: "hf" or "gguf"; None: gguf where the target ends in .gguf.
        dtype: "f32", "f16" or "bf16"; of GGUF also "q8_0".
        push: a repository of the hub, ORG/NAME, that gets the files too, in one commit.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError for a target that is there already, and for a shape that no reader takes;
    ParityError (an SlmError) where what was written is not the model.
    """
    from slm.model.export.readers import check_readable, limits
    from slm.model.saved import load_model
    from slm.source.hub_models import check_repository

    target = Path(target)
    to = check_target(target, to, dtype)
    if push is not None:
        check_repository(push)
    folder, claim = identify(model, root)
    loaded = load_model(folder)
    check_readable(loaded.model.config, to, dtype)
    with _staging(target) as staging:
        write = _write_folder if to == "hf" else _write_file
        texts = held_out(folder, loaded.tokenizer, claim, root)
        record = write(folder, loaded, texts, staging, target, dtype, claim)
    warnings = limits(loaded.model.config) if to == "hf" else []
    address = send(record, target, push) if push is not None else None
    return record.model_copy(update={"warnings": warnings, "pushed": address})


def check_target(target: Path, to: Format | None, dtype: str) -> Format:
    """The format of an export. Raises UserError for what cannot be written there."""
    if to is None:
        to = "gguf" if target.suffix == SUFFIX else "hf"
    if to not in get_args(Format):
        raise UserError(f"to={to!r}: give hf or gguf")
    if dtype not in DTYPES[to]:
        raise UserError(f"dtype={dtype!r}: of {to} give {', '.join(DTYPES[to])}")
    if (target.suffix == SUFFIX) != (to == "gguf"):
        name = f"a file, such as {target.name}{SUFFIX}" if to == "gguf" else "a folder"
        raise UserError(f"{target}: with to={to} name {name}")
    if target.exists():
        kind = "file" if to == "gguf" else "folder"
        raise UserError(f"{target} exists already: name a {kind} that does not")
    return to


def identify(model: "Given", root: Path | None = None) -> tuple[Path, dict[str, str]]:
    """The folder of a model's files, and what an export of it claims to be."""
    from slm.model.saved import MODEL
    from slm.registry.opening import model_folder
    from slm.registry.versions import open_version
    from slm.tokens.tokenizer.bpe import TOKENIZER

    reference = reference_to(model)
    claim: dict[str, str] = {}
    if names_version(reference):
        version = open_version(reference, root)
        folder = model_folder(version, root)  # by its number: an alias may move meanwhile
        claim = {"version": version.uri, "run": version.required("run")}
        claim["checkpoint"] = version.required("checkpoint")
    else:
        folder = model_folder(reference, root)
        run = run_of_checkpoint(folder)
        if run is not None and run.exists:
            claim = {"run": run.name, "checkpoint": folder.name}
    claim["weights_sha256"] = storage.sha256_file(folder / MODEL)
    claim["tokenizer_sha256"] = storage.sha256_file(folder / TOKENIZER)
    claim["slm"] = slm.__version__
    return folder, claim


# ---- writing ------------------------------------------------------------------------------------


def _write_folder(
    folder: Path,
    loaded: "LoadedModel",
    texts: list["Ids"],
    staging: Path,
    target: Path,
    dtype: str,
    claim: dict[str, str],
) -> Export:
    from slm.model.export import hugging_face, parity, reading

    model, tokenizer = loaded
    staged = staging / target.name
    staged.mkdir()
    hugging_face.write_hugging_face(staged, model, tokenizer, dtype)
    exported = reading.read_hugging_face(staged)
    compared = parity.check_parity(model, tokenizer, exported, dtype, texts)
    weights_sha256 = claim["weights_sha256"]
    if card := hugging_face.model_card(folder, weights_sha256):
        (staged / "README.md").write_bytes(hugging_face.with_usage(card.read_bytes()))
    record = Export(key=weights_sha256, to="hf", dtype=dtype, claim=claim, parity=_facts(compared))
    return storage.commit(staged, target, record)


def _write_file(
    folder: Path,
    loaded: "LoadedModel",
    texts: list["Ids"],
    staging: Path,
    target: Path,
    dtype: str,
    claim: dict[str, str],
) -> Export:
    """Write the file, and next to it its Modelfile and a record with the parity."""
    from slm.model.export import gguf, parity, reading

    model, tokenizer = loaded
    staged = staging / target.name
    gguf.write_gguf(staged, model, tokenizer, dtype, claim)  # type: ignore[arg-type]
    compared = parity.check_parity(model, tokenizer, reading.read_gguf(staged), dtype, texts)
    entry = FileEntry(bytes=staged.stat().st_size, sha256=storage.sha256_file(staged))
    key = claim["weights_sha256"]
    text = gguf.modelfile(target.name, model.config.seq_len)
    described = target.with_name(MODELFILE)
    if described.exists():  # of another file in the folder
        described = target.with_suffix(f".{MODELFILE}")
    files = {target.name: entry, described.name: _entry(text)}
    record = Export(
        key=key, files=files, to="gguf", dtype=dtype, claim=claim, parity=_facts(compared)
    )
    if not storage.write_file(target, _parts(staged), replace=False):
        raise UserError(f"{target} exists already: name a file that does not")
    storage.write_file(described, text)
    storage.write_json(target.with_name(f"{target.name}.json"), record.model_dump(mode="json"))
    return record.model_copy(update={"path": target})


def _entry(text: str) -> FileEntry:
    return FileEntry(bytes=len(text.encode()), sha256=storage.sha256_bytes(text.encode()))


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(COPIED_BYTES):
            yield part


def _facts(compared: object) -> dict[str, float]:
    facts: dict[str, float] = compared.model_dump(mode="json")  # type: ignore[attr-defined]
    return facts


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """An empty folder next to `target`, of a unique name; what is left in it is deleted."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent} ({error.strerror}): name another folder"
        ) from error
    with temporary as name:
        yield Path(name)


def held_out(
    folder: Path, tokenizer: "Tokenizer", claim: dict[str, str], root: Path | None = None
) -> list["Ids"]:
    """The first held-out documents of a model's run; generated stories where they are not here."""
    run = run_of_checkpoint(folder)
    if (run is None or not run.exists) and "run" in claim:
        run = DataRoot(root).named_run(claim["run"])
    texts: list[Ids] = []
    if run is not None and run.exists:
        texts = _of_run(run, tokenizer)
    if not any(len(ids) for ids in texts):
        texts = [np.array(tokenizer.encode(text), np.uint32) for text in stories(0, 0, 8)]
    return texts


def _of_run(run: RunFolder, tokenizer: "Tokenizer") -> list["Ids"]:
    try:
        shards = run.shards
        if shards is None or "val" not in shards.splits:
            return []
        if shards.tokenizer_sha256 != tokenizer.sha256:
            return []
        return list(islice(documents(shards, "val"), MAX_DOCUMENTS))
    except (CorruptionError, OSError):  # damaged shards are no reason to keep a sound model in
        return []


# ---- the hub ------------------------------------------------------------------------------------


def send(record: Export, target: Path, repository: str) -> str:
    """Send an export to the hub in one commit; return the commit's address."""
    from slm.source.hub_models import upload

    if record.to == "hf":
        names = [*record.files, storage.RECORD]
        files = {name: target / name for name in names}
    else:
        names = [*record.files, f"{target.name}.json"]
        files = {name: target.with_name(name) for name in names}
    model = record.claim.get("version") or record.claim.get("run") or record.key[:12]
    return upload(repository, files, f"{model} as {record.to}, {record.dtype}")
