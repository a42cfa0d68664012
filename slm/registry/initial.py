"""What `train.init_from` names, as the model that a training starts from.

    RUN, or its folder            the best checkpoint of a finished run; a checkpoint's folder: that
    models:/NAME@ALIAS, …/3       a version of the registry of the config
    hf:FOLDER                     a folder that `transformers` or `slm export` wrote
    hf:ORG/NAME[@REVISION]        a model of the hub, at the commit that the revision is now

An alias, a branch and a name are resolved once, when a plan or a run is made: the keys have the
hash of the weights that they are then. The shape and the vocabulary come with the weights.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from slm import keys, storage
from slm.config import GPT2_VOCAB_SIZE, ModelConfig, PipelineConfig, data_name, data_root
from slm.errors import CorruptionError, UserError, first_invalid
from slm.model import pretrained
from slm.model.pretrained import INDEX, PICKLE, VOCABULARIES
from slm.model.saved import CONFIG, MODEL, MODEL_FILES
from slm.progress import Progress, silent
from slm.records import LATEST, FileEntry, Imported, Parent, names_version
from slm.registry.versions import as_parent
from slm.run_folder import DataRoot, run_of_checkpoint
from slm.source import hub, seen
from slm.source.hub_client import ModelRepo, keep_cache_in
from slm.tokens.tokenizer.bpe import TOKENIZER

HUGGING_FACE = "hf:"
IMPORTED = "imported"  # of the data folder: Hugging Face models in our form
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+|[\w-][\w.-]*)(?:@([^\s@]+))?")
# That the weights have; dropout is of a training, and what gpt2 has no use for is not compared.
_OF_WEIGHTS = ("architecture", "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "rope_theta")


@dataclass(frozen=True)
class Start:
    """What a training starts from, fixed; a Hugging Face model need not be imported yet."""

    model: str  # models:/NAME/VERSION, RUN/CHECKPOINT, hf:ORG/NAME@COMMIT, hf:FOLDER
    shape: ModelConfig
    vocab_size: int
    tokenizer_sha256: str
    parent: Parent | None
    vocab_asked: int | None = None  # data.vocab_size of the run that it was trained in
    files: "Callable[[Progress], pretrained.Files]" = field(default=lambda progress: {}, repr=False)


def initial_model(
    config: PipelineConfig, *, root: Path | None = None, progress: Progress = silent
) -> tuple[PipelineConfig, Parent | None]:
    """The config with the shape of the model that it starts from, and that model.

    >>> config, parent = slm.initial_model(slm.load_recipe("finetune", {"data.path": "notes"}))
    >>> shards = slm.encode(config, slm.download(config), parent=parent)
    >>> run = slm.train(config, shards, parent=parent)

    Without `train.init_from` the config is as it was, and the model is None: the seed. A Hugging
    Face model is downloaded and converted where that was not done yet.

    Raises UserError where there is no such model, it is of another form than ours, or the config
    states another shape.
    """
    start = resolve(config, root)
    if start is None:
        return config, None
    return agreed(config, start), open_parent(start, root, progress)


def resolve(config: PipelineConfig, root: Path | None = None) -> Start | None:
    """What a config starts from; None: the seed. Of the hub only small files are downloaded.

    Raises UserError as `initial_model` does.
    """
    text, home = config.train.init_from, root or data_root()
    if text is None:
        return None
    if text.startswith(HUGGING_FACE):
        return of_hub(text, home) if is_of_hub(text) else of_folder(text, home)
    if names_version(text):
        try:
            return known(as_parent(text, config, home), home)
        except UserError as error:
            raise UserError(f"train.init_from={text}: {error}") from error
    folder = folder_of_run(text, home)
    if (folder / storage.RECORD).is_file():
        storage.check_files(folder, MODEL_FILES)
    files = storage.describe_files(folder, [folder / name for name in MODEL_FILES])
    return known(parent_of_run(folder, files), home)


def known(parent: Parent, root: Path) -> Start:
    """A model that is here already, in our form."""
    try:
        fields = json.loads((parent.path / CONFIG).read_bytes())
        shape, size = ModelConfig.model_validate(fields["model"]), int(fields["vocab_size"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptionError(f"{parent.path / CONFIG} is no model's: {error}") from error
    asked = None
    with suppress(CorruptionError, UserError):
        run = DataRoot(root).named_run(parent.run)
        asked = run.config.data.vocab_size if run.exists else None
    return Start(parent.model, shape, size, parent.tokenizer_sha256, parent, asked)


# ---- a run ------------------------------------------------------------------------------------


def folder_of_run(text: str, root: Path) -> Path:
    """The folder of a model that a run's name, or a folder, means. Raises UserError."""
    at, given = f"train.init_from={text}", Path(text).expanduser()
    if (given / MODEL).is_file():
        fields: Mapping[str, object] = {}
        with suppress(OSError, ValueError):
            fields = json.loads((given / CONFIG).read_bytes())
        if "model" not in fields:
            raise UserError(f"{at} is no model of ours; of Hugging Face: {HUGGING_FACE}{text}")
        return given.resolve()
    if text == LATEST:
        raise UserError(f"{at}: the run that is made would be the latest then: give a name")
    try:
        run = DataRoot(root).run(text)
    except UserError as error:
        raise UserError(
            f"{at}: {error}; a model of Hugging Face is {HUGGING_FACE}FOLDER or "
            f"{HUGGING_FACE}ORG/NAME"
        ) from error
    record = run.record
    if record is None:
        raise UserError(
            f"{at} is not finished: `slm train {run.name}` trains it, or give the folder of one of "
            "its checkpoints"
        )
    return record.checkpoint("best")


def parent_of_run(folder: Path, files: Mapping[str, FileEntry]) -> Parent:
    """The model of a checkpoint's folder. `files`: those of a model, by their names."""
    run = run_of_checkpoint(folder)
    return Parent(
        key=storage.sha256_json({name: files[name].sha256 for name in MODEL_FILES}),
        path=folder,
        files={name: files[name] for name in MODEL_FILES},
        model=f"{run.name}/{folder.name}" if run else folder.name,
        run=run.name if run else "",
        tokenizer_sha256=files[TOKENIZER].sha256,
    )


# ---- Hugging Face -----------------------------------------------------------------------------


def is_of_hub(text: str) -> bool:
    """Whether `hf:…` is an id of the hub, and not a folder that is here, or is written as one."""
    name = text.removeprefix(HUGGING_FACE)
    is_folder = name.startswith((".", "/", "~")) or Path(name).is_dir()
    return not is_folder


def chosen(names: Collection[str]) -> list[str]:
    """Of the files that a model has, those that are read: config, tokenizer and weights."""
    vocabulary = VOCABULARIES[:1] if VOCABULARIES[0] in names else VOCABULARIES[1:]
    weights = [name for name in (MODEL, INDEX, PICKLE) if name in names][:1]
    return [name for name in (CONFIG, *vocabulary, *weights) if name in names]


def files_of_folder(text: str) -> pretrained.Files:
    """The files of a Hugging Face folder that are read. Raises UserError where it is none."""
    folder = Path(text.removeprefix(HUGGING_FACE)).expanduser()
    if not folder.is_dir():
        raise UserError(f"train.init_from={text}: there is no such folder")
    present = [name for name in pretrained.NAMES if (folder / name).is_file()]
    files = {name: folder / name for name in chosen(present)}
    return files | {
        n: folder / n for n in pretrained.weight_files(files, f"train.init_from={text}")
    }


def of_folder(text: str, root: Path) -> Start:
    """The model of a Hugging Face folder; its weights are not read yet."""
    files = files_of_folder(text)
    folder = Path(text.removeprefix(HUGGING_FACE)).expanduser().resolve()
    return described(f"{HUGGING_FACE}{folder}", text, files, root, lambda progress: files)


def described(
    model: str,
    text: str,
    files: pretrained.Files,
    root: Path,
    every: Callable[[Progress], pretrained.Files],
) -> Start:
    """A Hugging Face model by its config and tokenizer. `every`: gets all of its files."""
    at = f"train.init_from={text}"
    shape, vocab_size = pretrained.read_shape(files, at)
    tokenizer = pretrained.read_tokenizer(files, vocab_size, at, root)
    return Start(model, shape, vocab_size, tokenizer.sha256, None, files=every)


def of_hub(text: str, root: Path) -> Start:
    """A model of the hub, at the commit that its revision is now.

    One that was imported at that commit is taken from here, and a full commit needs no network
    then.
    """
    repo = repository(text)
    keep_cache_in(root)
    commit = hub.resolve_commit(repo)
    model = f"{HUGGING_FACE}{repo.path}@{commit}"
    if imported := find_imported(root, model):
        mark_used(imported)
        return known(parent_of_import(imported), root)
    listed = hub.model_files(repo, commit, list(pretrained.NAMES))
    names = chosen(listed)
    small = {
        n: hub.fetch(repo, commit, listed[n], silent) for n in names if n not in (MODEL, PICKLE)
    }
    at = f"train.init_from={text}"
    weights = pretrained.weight_files({**dict.fromkeys(names, Path()), **small}, at)

    def every(progress: Progress) -> pretrained.Files:
        parts = hub.model_files(repo, commit, weights)
        return {**small, **{n: hub.fetch(repo, commit, f, progress) for n, f in parts.items()}}

    return described(model, text, small, root, every)


def repository(text: str) -> ModelRepo:
    """The repository that `hf:ORG/NAME@REVISION` names. Raises UserError where it is none."""
    parsed = _HUB_ID.fullmatch(text.removeprefix(HUGGING_FACE))
    if parsed is None:
        raise UserError(f"train.init_from={text} is neither {HUGGING_FACE}ORG/NAME[@REVISION] nor "
                        f"{HUGGING_FACE}FOLDER")  # fmt: skip
    return ModelRepo(parsed[1], parsed[2])


def open_parent(start: Start, root: Path | None = None, progress: Progress = silent) -> Parent:
    """The model with its weights: downloaded and converted where that was not done yet.

    Raises UserError where its weights do not fit its config, CorruptionError where they cannot be
    read.
    """
    if start.parent:
        return start.parent
    home = root or data_root()
    files = start.files(progress)
    at = f"train.init_from={start.model}"
    progress("reading", 0, None)
    stamped = seen.stamps(files.values())
    origin = {name: storage.sha256_file(path) for name, path in files.items()}
    key = import_key(start.model, origin)

    def build(staging: Path) -> Imported:
        model = pretrained.read_model(files, start.shape, start.vocab_size, at)
        tokenizer = pretrained.read_tokenizer(files, start.vocab_size, at, home)
        if seen.stamps(files.values()) != stamped:
            raise CorruptionError(f"{at} changed while it was read: try again")
        pretrained.save(model, tokenizer, staging)
        return Imported(
            key=key, model=start.model, origin=origin, tokenizer_sha256=tokenizer.sha256
        )

    folder = import_folder(home, start.model, key)
    imported = storage.run_stage(folder, Imported, key, build)
    mark_used(imported)
    seen.remember(home, {path: origin[name] for name, path in files.items()}, stamped)
    return parent_of_import(imported.model_copy(update={"model": start.model}))


def import_key(model: str, origin: Mapping[str, str]) -> str:
    """The key of an import: of the files, and of a model of the hub its id and commit."""
    fields = {"model": model if is_pinned(model) else None}
    return keys.stage_key("import", pretrained.IMPORT_VERSION, fields, dict(origin))


def is_pinned(model: str) -> bool:
    """Whether `hf:…` is a model of the hub at a commit."""
    return not model.startswith(f"{HUGGING_FACE}/") and hub.is_commit(model.rpartition("@")[2])


def import_folder(root: Path, model: str, key: str) -> Path:
    """Where an import belongs."""
    name = data_name(model.removeprefix(HUGGING_FACE).partition("@")[0]) or "model"
    return DataRoot(root).path / IMPORTED / f"{name}-{key[:12]}"


def find_imported(root: Path, model: str) -> Imported | None:
    """The import of a model of the hub at a commit; None where there is none that is whole."""
    folder = root / IMPORTED
    name = import_folder(root, model, "").name
    for path in sorted(folder.glob(f"{name}*")):
        with suppress(CorruptionError):
            record = storage.read_record(path, Imported, verify=False)
            if record and record.model == model and not storage.mismatches(path, record.files):
                return record
    return None


def mark_used(imported: Imported) -> None:
    """Let `slm gc` see that an import is in use: its record is as new as that."""
    with suppress(OSError):  # another user's
        (imported.path / storage.RECORD).touch()


def parent_of_import(imported: Imported) -> Parent:
    """The model of an import, with the hashes of the files that it was made from."""
    files = {name: imported.files[name] for name in MODEL_FILES}
    return Parent(
        key=storage.sha256_json({name: entry.sha256 for name, entry in files.items()}),
        path=imported.path,
        files=files,
        model=imported.model,
        run="",
        tokenizer_sha256=imported.tokenizer_sha256,
        origin=imported.origin,
    )


# ---- the config -------------------------------------------------------------------------------


def agreed(config: PipelineConfig, start: Start) -> PipelineConfig:
    """The config with the shape of the weights and the size of their vocabulary.

    What the config leaves out is taken from the weights. `model.dropout` is of the training, and
    the context may be shorter than that of the weights; of qwen3, whose positions are no weights,
    any.

    Raises UserError where the config states another shape.
    """
    stated, theirs = config.model, start.shape
    given = stated.model_fields_set
    values = {**theirs.model_dump(), "dropout": stated.dropout}
    other = {
        name: (getattr(stated, name), getattr(theirs, name))
        for name in _OF_WEIGHTS
        if name in given and not _means_the_same(name, stated, theirs)
    }
    values |= {name: getattr(stated, name) for name in _OF_WEIGHTS if name in given - other.keys()}
    if "seq_len" in given:
        values["seq_len"] = stated.seq_len
        if theirs.architecture == "gpt2" and stated.seq_len > theirs.seq_len:
            other["seq_len"] = stated.seq_len, theirs.seq_len
    wrong = {f"model.{name}": pair for name, pair in other.items()}
    vocab_size = config.data.vocab_size
    if "vocab_size" in config.data.model_fields_set and vocab_size not in (
        start.vocab_size, start.vocab_asked, GPT2_VOCAB_SIZE,
    ):  # fmt: skip
        wrong["data.vocab_size"] = vocab_size, start.vocab_size
    if wrong:
        raise UserError(_disagreement(config, start, wrong))
    if vocab_size in (start.vocab_size, GPT2_VOCAB_SIZE):
        vocab_size = start.vocab_size
    try:
        shaped = config.model_copy(
            update={
                "model": ModelConfig(**values),
                "data": config.data.model_copy(update={"vocab_size": vocab_size}),
            }
        )
        PipelineConfig.model_validate(shaped.model_dump(), context={"stored": True})
    except ValidationError as error:
        raise UserError(
            f"train.init_from={config.train.init_from}: {first_invalid(error)}"
        ) from error
    return shaped


def _means_the_same(name: str, stated: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether a setting has a value by which the same weights are used in the same way."""
    ours, other = getattr(stated, name), getattr(theirs, name)
    if name == "n_kv_head":
        return (ours or theirs.n_head) == (other or theirs.n_head)
    if name == "n_inner":
        width = partial(pretrained.inner_width, theirs)
        return ours == other or width(ours) == width(other)
    unused = name == "rope_theta" and theirs.architecture == "gpt2"
    return unused or bool(ours == other)


def _disagreement(
    config: PipelineConfig, start: Start, wrong: Mapping[str, tuple[object, object]]
) -> str:
    stated = ", ".join(f"{name}={ours}" for name, (ours, _) in wrong.items())
    theirs = ", ".join(f"{name.partition('.')[2]}={value}" for name, (_, value) in wrong.items())
    changes = " ".join(
        f"--set {name}={'null' if value is None else value}" for name, (_, value) in wrong.items()
    )
    return (
        f"{stated}, and {start.model}, which train.init_from={config.train.init_from} names, has "
        f"{theirs}: leave {'it' if len(wrong) == 1 else 'them'} out of the recipe, or {changes}"
    )
