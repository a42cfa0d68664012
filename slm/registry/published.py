"""`slm verify --published`: whether what was published is the model that it claims to be.

The export is rebuilt from the model's own files and compared with what was published, part by
part: an export of the same model and dtype has the same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from slm import storage
from slm.errors import CorruptionError, SlmError, UserError, listing
from slm.records import Export, Frozen
from slm.registry.exporting import SUFFIX, identify
from slm.run_folder import CHECKPOINTS, DataRoot
from slm.storage import sha256_file

if TYPE_CHECKING:
    import torch

    from slm.model.export.reading import Exported
    from slm.model.saved import LoadedModel
    from slm.registry.opening import Given

PARTS = {  # of a Hugging Face folder
    "weights": ("model.safetensors",),
    "config": ("config.json", "generation_config.json"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json"),
}
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_FILE_TYPES = {0: "f32", 1: "f16", 7: "q8_0", 32: "bf16"}  # of GGUF
MAX_NAMED = 3  # of the things that differ


class Part(Frozen):
    """A part of what was published, compared with that of our model."""

    name: Literal["weights", "config", "tokenizer"]
    identical: bool
    difference: str = ""  # in words
    sha256: dict[str, str] = Field(default_factory=dict)  # of the published files


class Published(Frozen):
    """What was compared."""

    place: str
    revision: str | None  # the commit, of a repository on the hub
    model: str  # that it was compared with
    weights_sha256: str  # of the model's own file
    to: Literal["hf", "gguf"]
    dtype: str
    parts: list[Part]

    @property
    def identical(self) -> bool:
        return all(part.identical for part in self.parts)


def verify_published(
    place: str | Path, model: "Given | None" = None, *, root: Path | None = None
) -> Published:
    """Whether an exported folder, a GGUF file or a repository of the hub is one of our models.

    >>> slm.verify_published("out", "slm@champion").identical

    Args:
        place: a folder, a file FILE.gguf, or ORG/NAME of the hub (ORG/NAME@REVISION).
        model: the run, version or folder that it must be; None: that which it claims to be, whose
            run or version must be known here.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError where there is nothing of that name, or no model to compare it with.
    """
    with _opened(str(place)) as (path, revision):
        file = _gguf_file(path)
        claim, to, dtype = _claim_of_file(file) if file else _claim_of_folder(path)
        folder, name = _own(model, claim, str(place), root)
        from slm.model.saved import MODEL, load_model

        loaded = load_model(folder)
        parts = _compare_file(file, loaded, claim, dtype) if file else _compare_folder(
            path, loaded, dtype
        )  # fmt: skip
        return Published(
            place=str(place), revision=revision, model=name, to=to, dtype=dtype, parts=parts,
            weights_sha256=sha256_file(folder / MODEL),
        )  # fmt: skip


# ---- where it is, and what it claims ------------------------------------------------------------


@contextmanager
def _opened(place: str) -> Iterator[tuple[Path, str | None]]:
    """The local path of what is published, and its commit, of the hub."""
    from slm.source.hub_models import download, is_repository

    if Path(place).exists():
        yield Path(place), None
        return
    repository, _, revision = place.partition("@")
    if not is_repository(repository):
        raise UserError(
            f"{place} is neither a folder, a {SUFFIX} file nor ORG/NAME of the hub: give one"
        )
    with TemporaryDirectory(prefix="slm-published-") as folder:
        commit = download(repository, Path(folder), revision or None)
        yield Path(folder), commit


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that is given, or the only one of a folder without safetensors."""
    if path.is_file():
        return path
    if (path / PARTS["weights"][0]).is_file():
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise UserError(f"{path} has several GGUF files: name one of {listing(files)}")
    return files[0] if files else None


def _claim_of_file(file: Path) -> tuple[dict[str, str], Literal["gguf"], str]:
    from slm.model.export.gguf import CLAIM
    from slm.model.export.reading import read_gguf

    facts = read_gguf(file).facts
    claim = {
        key.removeprefix(CLAIM): str(value) for key, value in facts.items() if key.startswith(CLAIM)
    }
    number = facts.get("general.file_type")
    if number not in _FILE_TYPES:
        raise UserError(f"{file} is of GGUF's file type {number}: slm exports f32, f16, bf16, q8_0")
    return claim, "gguf", _FILE_TYPES[number]


def _claim_of_folder(folder: Path) -> tuple[dict[str, str], Literal["hf"], str]:
    """What a folder claims by its record; the dtype that its config names."""
    from slm.model.export.reading import read_hugging_face

    exported = read_hugging_face(folder)
    dtype = _DTYPES.get(str(exported.facts.get("dtype", "float32")), "f32")
    claim: dict[str, str] = {}
    with suppress(FileNotFoundError, CorruptionError, ValidationError):
        _, fields = storage.read_versioned(folder / storage.RECORD, sealed=True)
        if "claim" in fields:
            claim = Export.model_validate(fields).claim
        else:  # of an older export, whose record has the hash of the weights alone
            claim = {"weights_sha256": str(fields["key"])}
    return claim, "hf", dtype


def _own(
    model: "Given | None", claim: Mapping[str, str], place: str, root: Path | None
) -> tuple[Path, str]:
    """The folder and name of the model of ours that is to be compared.

    Raises UserError where none is known.
    """
    if model is not None:
        folder, facts = identify(model, root)
        return folder, facts.get("version") or facts.get("run") or str(folder)
    if not claim:
        raise UserError(
            f"{place} does not name the model that it is: give it, `slm verify RUN --published "
            f"{place}`"
        )
    weights = claim.get("weights_sha256", "")
    if uri := claim.get("version"):
        with suppress(SlmError):  # not in this registry: its run may be here
            return identify(uri, root)[0], uri
    if checkpoint := _of_weights(weights, claim, DataRoot(root)):
        return checkpoint, f"{checkpoint.parents[1].name}, {checkpoint.name}"
    named = claim.get("version") or claim.get("run") or "a model"
    raise UserError(
        f"{place} claims to be {named}, of weights {weights[:12]}…, which are not here: `slm pull` "
        "brings a version or a run from a store; or give the model to compare with"
    )


def _of_weights(weights_sha256: str, claim: Mapping[str, str], data: DataRoot) -> Path | None:
    """The checkpoint of such weights: the one that is named, else whichever run has it."""
    from slm.model.saved import MODEL

    candidates: list[Path] = []
    if "run" in claim and "checkpoint" in claim:
        folder = data.named_run(claim["run"]).path / CHECKPOINTS
        candidates.append(storage.named(folder, claim["checkpoint"]))
    candidates += [folder for run in data.runs() for _, folder in run.checkpoints]
    for folder in candidates:
        path = folder / MODEL
        if path.is_file() and sha256_file(path) == weights_sha256:
            return folder
    return None


# ---- comparing ----------------------------------------------------------------------------------


def _compare_folder(folder: Path, loaded: "LoadedModel", dtype: str) -> list[Part]:
    from slm.model.export.hugging_face import write_hugging_face

    with TemporaryDirectory(prefix="slm-export-") as made:
        ours = Path(made)
        write_hugging_face(ours, *loaded, dtype)
        return [_compare_files(name, files, folder, ours) for name, files in PARTS.items()]  # type: ignore[arg-type]


def _compare_files(
    part: Literal["weights", "config", "tokenizer"], names: tuple[str, ...], folder: Path,
    ours: Path,
) -> Part:  # fmt: skip
    """Files by their hashes; where these differ, by what is in them."""
    hashes, differences = {}, []
    for name in names:
        if not (folder / name).is_file():
            differences.append(f"{name} is missing")
            continue
        hashes[name] = sha256_file(folder / name)
        if hashes[name] == sha256_file(ours / name):
            continue
        if name.endswith(".safetensors"):
            differences += _tensors_that_differ(folder / name, ours / name)
        elif difference := _keys_that_differ(_json(folder / name), _json(ours / name)):
            differences.append(f"{name}: {difference}")
    return Part(
        name=part, identical=not differences, difference="; ".join(differences), sha256=hashes
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return {}


def _keys_that_differ(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """`n_head 8 instead of 6, n_inner is missing`; empty where nothing differs."""
    lines = []
    for key in sorted(theirs.keys() | ours.keys()):
        if key not in theirs:
            lines.append(f"{key} is missing")
        elif key not in ours:
            lines.append(f"{key} is not ours")
        elif theirs[key] != ours[key]:
            values = [storage.to_json(each[key]) for each in (theirs, ours)]
            short = max(map(len, values)) < 40
            lines.append(f"{key} {values[0]} instead of {values[1]}" if short else f"{key} differs")
    return _some(lines)


def _tensors_that_differ(theirs: Path, ours: Path) -> list[str]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read = load_file(theirs)
    except SafetensorError as error:
        return [f"{theirs.name} cannot be read ({error})"]
    return _named_tensors(read, load_file(ours))


def _named_tensors(
    theirs: Mapping[str, "torch.Tensor"], ours: Mapping[str, "torch.Tensor"]
) -> list[str]:
    import torch

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)

    wrong = [f"{name} is missing" for name in ours if name not in theirs]
    wrong += [f"{name} is not ours" for name in theirs if name not in ours]
    wrong += [
        f"{name} differs" for name in ours if name in theirs and not same(theirs[name], ours[name])
    ]
    total = f" ({len(wrong)} of {len(ours)} tensors)" if wrong else ""
    return [_some(wrong) + total] if wrong else []


def _some(lines: list[str]) -> str:
    more = f" and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
    return ", ".join(lines[:MAX_NAMED]) + more


def _compare_file(
    file: Path, loaded: "LoadedModel", claim: Mapping[str, str], dtype: str
) -> list[Part]:
    """A GGUF file by its hash; where that differs, by what is in it."""
    from slm.model.export.gguf import write_gguf
    from slm.model.export.reading import read_gguf

    model, tokenizer = loaded
    hashes = {file.name: sha256_file(file)}
    differences = dict.fromkeys(PARTS, "")
    with TemporaryDirectory(prefix="slm-export-") as made:
        path = Path(made) / file.name
        write_gguf(path, model, tokenizer, dtype, claim)  # type: ignore[arg-type]
        if sha256_file(path) != hashes[file.name]:
            theirs, ours = read_gguf(file), read_gguf(path)
            wrong = _named_tensors(theirs.weights, ours.weights)
            differences = {
                "weights": "; ".join(wrong) or _keys_that_differ(theirs.stored, ours.stored),
                "config": _keys_that_differ(_settings(theirs), _settings(ours)),
                "tokenizer": _keys_that_differ(_words(theirs), _words(ours)),
            }
    return [
        Part(name=name, identical=not text, difference=text, sha256=hashes)
        for name, text in differences.items()
    ]


def _words(exported: "Exported") -> dict[str, Any]:
    return {key: value for key, value in exported.facts.items() if key.startswith("tokenizer.")}


def _settings(exported: "Exported") -> dict[str, Any]:
    return {key: value for key, value in exported.facts.items() if key not in _words(exported)}
