"""Tokenizer: a source → a vocabulary of one's own, trained on the train split alone, or given.

The stage is there only where `data.tokenizer` is set. Worker processes clean the documents, in the
same units as encoding has them, but as bytes; the same documents are held out and dropped. The
result depends on the documents and the config alone.
"""

import logging
import shutil
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from slm import keys, storage
from slm.config import PipelineConfig, TokenizerConfig
from slm.errors import CorruptionError, UserError
from slm.progress import Progress, automatic
from slm.records import Source, Vocabulary, check_input
from slm.run_folder import DataRoot
from slm.source import hub_models
from slm.tokens import holdout
from slm.tokens.cleaning import check_extras
from slm.tokens.encode import (
    MakePool,
    Selection,
    encode_in_order,
    units_folder,
    worker_count,
)
from slm.tokens.functions import Functions, check_functions, functions_of, key_fields
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.tokens.tokenizer.given import SUFFIX, read_given
from slm.tokens.tokenizer.patterns import PATTERNS
from slm.tokens.tokenizer.training import TRAINER, check_trainer, train_bpe
from slm.tokens.units import ByteTokenizer, Encoded, plan_units
from slm.tokens.workers import Workers

logger = logging.getLogger(__name__)

TOKENIZER_VERSION = 1
"""Goes up whenever the same source and config give another vocabulary."""

HUB = "hf:"
_FILE = "tokenizer.json"


@storage.hashing_once()
def make_tokenizer(
    config: PipelineConfig,
    source: Source,
    *,
    root: Path | None = None,
    progress: Progress = automatic,
    pool: MakePool | None = None,
) -> Vocabulary:
    """The vocabulary of `data.tokenizer` in `<root>/tokenizers/<name>-<key>/`.

    >>> config = slm.load_recipe("quickstart", {"data.tokenizer.train": "bpe"})
    >>> source = slm.download(config)
    >>> shards = slm.encode(config, source, vocabulary=slm.make_tokenizer(config, source))

    Args:
        pool: as of `encode`.

    Raises UserError where `data.tokenizer` is not set, the library that trains is not installed, or
    a given file is not byte-level BPE; CorruptionError where the source cannot be read.
    """
    check_input(source, Source)
    check_set(config)
    data = DataRoot(root)
    if config.data.tokenizer.path:
        return _given(config, data)
    functions = functions_of(config.data.clean)  # read once: what the key has is what runs
    key = trained_key(config, source, functions=functions)
    folder = data.folder("tokenizers", config.folder_name, key)
    work = units_folder(folder)

    def build(staging: Path) -> Vocabulary:
        check_trainer()
        check_extras(config.data.clean)
        check_functions(functions)
        work.mkdir(exist_ok=True)
        try:
            return _train(key, config, source, work, staging, progress, pool, functions)
        except UserError:  # which the same call would raise again
            shutil.rmtree(work, ignore_errors=True)
            raise

    with storage.reading(source.path):
        made = keys.made("tokenizer", config)
        vocabulary = storage.run_stage(folder, Vocabulary, key, build, made)
    shutil.rmtree(work, ignore_errors=True)
    return vocabulary


def check_set(config: PipelineConfig) -> None:
    """Raises UserError where the config has GPT-2's vocabulary, which no stage makes."""
    if not config.data.tokenizer.is_set:
        raise UserError(
            f"recipe {config.recipe} has GPT-2's vocabulary: set data.tokenizer.train=bpe for one "
            "of its own, or data.tokenizer.path for a given one"
        )


def trained_key(
    config: PipelineConfig,
    source: Source,
    version: int | None = None,
    functions: Functions | None = None,
) -> str:
    """The key of the vocabulary that is trained on a source; arguments as of `encode_key`."""
    fields = keys.stage_fields("tokenizer", config)
    if functions is None:
        functions = functions_of(config.data.clean)
    if functions:
        fields["functions"] = key_fields(functions)
    if rule := holdout.small_set_rule(config.data, source):
        fields["held_out"] = rule
    version = version or TOKENIZER_VERSION
    return keys.stage_key("tokenizer", version, fields, storage.content_hash(source))


def given_key(settings: TokenizerConfig, sha256: str) -> str:
    """The key of a vocabulary by the hash of the file that it is given in."""
    fields: dict[str, object] = {"special_tokens": settings.special_tokens}
    if is_tiktoken(settings):
        fields["pattern"] = settings.pattern
    return keys.stage_key("tokenizer", TOKENIZER_VERSION, {"given": fields}, sha256)


def known_key(
    config: PipelineConfig, source: Source | None, data: DataRoot
) -> tuple[str | None, str]:
    """The key that `make_tokenizer` would give, nothing being downloaded, and what is assumed.

    None, and why, where it is not known before a stage has run. `source`: not needed of a given
    vocabulary.
    """
    settings = config.data.tokenizer
    if settings.train:
        assert source is not None, "it is trained on the source"
        return trained_key(config, source), ""
    if not str(settings.path).startswith(HUB):
        return given_key(settings, storage.sha256_file(given_file(settings, data.path)[0])), ""
    repository, _, revision = str(settings.path).removeprefix(HUB).partition("@")
    for folder in data.results("tokenizers"):
        record = _read(folder)
        if record is None or not record.origin.startswith(f"{HUB}{repository}@"):
            continue
        if record.key == given_key(settings, record.origin_sha256 or ""):
            at_commit = revision and record.origin.endswith(f"@{revision}")
            note = f"{settings.path} is assumed to be {record.origin} still"
            return record.key, "" if at_commit else note
    return None, f"{settings.path} is downloaded first"


def known_vocabulary(
    config: PipelineConfig, source: Source | None, data: DataRoot
) -> Vocabulary | None:
    """The vocabulary that `make_tokenizer` would reuse; None where it is not here."""
    key, _ = known_key(config, source, data)
    return data.vocabulary(key)


def expected_size(config: PipelineConfig, root: Path | None = None) -> int:
    """Tokens of the vocabulary as settings have it; of a given one, its record or its file.

    That of GPT-2's for one that is not on this machine.
    """
    settings = config.data.tokenizer
    if settings.path:
        with suppress(CorruptionError, UserError, OSError):
            if known := known_vocabulary(config, None, DataRoot(root)):
                return known.vocab_size
            if not settings.path.startswith(HUB):
                path, _ = given_file(settings, Path())
                return _size_of(settings, path, path.stat().st_mtime_ns)
    return config.data.expected_vocab_size


@lru_cache(8)
def _size_of(settings: TokenizerConfig, path: Path, mtime_ns: int) -> int:
    return _read_given(settings, path).n_vocab


def _read(folder: Path) -> Vocabulary | None:
    with suppress(CorruptionError):
        return storage.read_record(folder, Vocabulary, verify=False)
    return None


def is_tiktoken(settings: TokenizerConfig) -> bool:
    """Whether a tokenizer is given as tiktoken's ranks."""
    return str(settings.path).endswith(SUFFIX)


# ---- training ---------------------------------------------------------------------------------


def _train(
    key: str,
    config: PipelineConfig,
    source: Source,
    work: Path,
    staging: Path,
    progress: Progress,
    pool: MakePool | None,
    functions: Functions,
) -> Vocabulary:
    settings = config.data.tokenizer
    counted = {"documents": 0, "bytes": 0}

    def texts() -> Iterator[str]:
        with closing(_train_texts(config, source, work, progress, pool, functions)) as documents:
            for document in documents:
                counted["documents"] += 1
                counted["bytes"] += len(document)
                yield document.decode()
                if counted["documents"] == settings.documents:
                    return

    tokenizer = train_bpe(
        texts(), settings.vocab_size, PATTERNS[settings.pattern], settings.special_tokens
    )
    if not counted["documents"]:
        raise UserError(f"no documents of {source.dataset} are left in train: give more documents")
    if tokenizer.n_vocab < settings.vocab_size:
        logger.warning(
            "the vocabulary has %s tokens instead of %s: no more pairs are in the %s documents",
            f"{tokenizer.n_vocab:,}", f"{settings.vocab_size:,}", f"{counted['documents']:,}",
        )  # fmt: skip
    return _written(staging, tokenizer, Vocabulary(
        key=key, kind="trained", source_key=source.key, origin=TRAINER, **_facts(tokenizer),
        **counted,
    ))  # fmt: skip


def _train_texts(
    config: PipelineConfig,
    source: Source,
    work: Path,
    progress: Progress,
    pool: MakePool | None,
    functions: Functions,
) -> Generator[bytes]:
    """The documents of train as they are encoded, in order, in UTF-8."""
    data = config.data
    rule = holdout.small_set_rule(data, source)
    units = plan_units(
        source, None, data.clean, work, splits_ends=rule == "ends", functions=functions
    )
    selection = Selection(data, source, ByteTokenizer())
    with pool(units) if pool else Workers(worker_count(data, units)) as workers:
        outputs = {unit: unit.output for unit in units}
        with closing(encode_in_order(workers, "tokenizer", outputs, progress)) as in_order:
            encoded: Iterator[Encoded] = in_order
            if selection.is_small:
                selection.hold_out_minimum(each.draws for each in encoded)
                encoded = map(Encoded.read, outputs.values())
            for unit, each in zip(units, encoded, strict=True):
                tokens, lengths, _ = each.select(selection.choose(unit.split, each)["train"])
                ends = np.cumsum(lengths)
                text = tokens.astype(np.uint8).tobytes()
                for begin, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
                    yield text[begin + 1 : end]  # without end-of-text


# ---- given ------------------------------------------------------------------------------------


def given_file(settings: TokenizerConfig, root: Path) -> tuple[Path, str]:
    """The file of a given tokenizer, and what it is named by: itself, or hf:ORG/NAME@COMMIT.

    Of the hub it is downloaded. Raises UserError where there is none.
    """
    text = settings.path
    assert text is not None, "it is given"
    if not text.startswith(HUB):
        path = Path(text).expanduser()
        path = path / _FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"data.tokenizer.path={text}: there is no such file")
        return path, path.name
    repository, _, revision = text.removeprefix(HUB).partition("@")
    folder = storage.make_folder(root / "cache" / "tokenizers" / repository.replace("/", "--"))
    names = (_FILE,)
    commit = hub_models.download(repository, folder, revision or None, names=names)
    if not (folder / _FILE).is_file():
        raise UserError(f"data.tokenizer.path={text}: {repository} has no {_FILE}")
    return folder / _FILE, f"{HUB}{repository}@{commit}"


def check_given(settings: TokenizerConfig) -> None:
    """Raises UserError where a given tokenizer is no file, or not byte-level BPE.

    One of the hub is not looked at.
    """
    if not str(settings.path).startswith(HUB):
        _read_given(settings, given_file(settings, Path())[0])


def _read_given(settings: TokenizerConfig, path: Path) -> Tokenizer:
    return read_given(
        path,
        f"data.tokenizer.path={settings.path}",
        is_tiktoken=is_tiktoken(settings),
        pattern=settings.pattern,
        special=settings.special_tokens,
    )


def _given(config: PipelineConfig, data: DataRoot) -> Vocabulary:
    settings = config.data.tokenizer
    path, origin = given_file(settings, data.path)
    sha256 = storage.sha256_file(path)
    key = given_key(settings, sha256)

    def build(staging: Path) -> Vocabulary:
        tokenizer = _read_given(settings, path)
        return _written(staging, tokenizer, Vocabulary(
            key=key, kind="given", source_key=None, origin=origin, origin_sha256=sha256,
            **_facts(tokenizer),
        ))  # fmt: skip

    folder = data.folder("tokenizers", config.folder_name, key)
    return storage.run_stage(folder, Vocabulary, key, build, keys.made("tokenizer", config))


def _facts(tokenizer: Tokenizer) -> dict[str, object]:
    pattern = tokenizer.pattern
    return {
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.n_vocab,
        "pattern": pattern.name or pattern.regex,
        "special_tokens": tokenizer.special,
    }


def _written(staging: Path, tokenizer: Tokenizer, record: Vocabulary) -> Vocabulary:
    tokenizer.save(staging / TOKENIZER)
    tokenizer.save_hugging_face(staging / _FILE)
    return record
