"""Tokenizer: a source → a vocabulary of one's own, trained on the train split alone, or given.

The stage is there only where `data.tokenizer` is set, and where a mixture trims GPT-2's: the
vocabulary of a mixture is made from all of its sources, without their weights. Worker processes
clean the documents, in the same units as encoding has them, but as bytes where it is trained; the
same documents are held out and dropped. The result depends on the documents and the config alone.
"""

import logging
import shutil
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slm import keys, storage
from slm.config import DataConfig, PipelineConfig, TokenizerConfig
from slm.errors import CorruptionError, UserError
from slm.progress import Progress, automatic
from slm.records import Source, Vocabulary, check_input
from slm.run_folder import DataRoot
from slm.source import hub_models
from slm.source.mixture import part_of_source
from slm.tokens import holdout
from slm.tokens.cleaning import Mask, check_extras
from slm.tokens.encode import (
    MakePool,
    check_columns,
    encode_in_order,
    units_folder,
    worker_count,
)
from slm.tokens.functions import Functions, check_functions, functions_of, key_fields
from slm.tokens.selection import Selection
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer, gpt2
from slm.tokens.tokenizer.given import SUFFIX, read_given
from slm.tokens.tokenizer.patterns import PATTERNS
from slm.tokens.tokenizer.training import TRAINER, check_trainer, train_bpe
from slm.tokens.tokenizer.trimming import trim_vocabulary
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
    texts = _texts(config, source)  # read once: what the key has is what runs
    key = _key(config, texts)
    folder = data.folder("tokenizers", config.folder_name, key)
    work = units_folder(folder)

    def build(staging: Path) -> Vocabulary:
        if config.data.tokenizer.train:
            check_trainer()
        for text in texts:
            check_extras(text.data.clean)
            check_functions(text.functions, text.data.columns)
            check_columns(text.data, text.source, text.functions)
        work.mkdir(exist_ok=True)
        reader = _Reader(texts, work, progress, pool)
        try:
            if config.data.tokenizer.train:
                return _train(key, config, source, reader, staging)
            return _trim(key, config, source, reader, staging, gpt2(data.path))
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
    if not config.data.makes_vocabulary:
        raise UserError(
            f"recipe {config.recipe} has GPT-2's vocabulary: set data.tokenizer.train=bpe for one "
            "of its own, or data.tokenizer.path for a given one"
        )


@dataclass(frozen=True)
class _Text:
    """A source that a vocabulary is made from: the only one, or one of a mixture."""

    name: str  # in the mixture; empty of the only one
    config: PipelineConfig
    source: Source
    functions: Functions

    @property
    def data(self) -> DataConfig:
        return self.config.data

    @property
    def fields(self) -> dict[str, Any]:
        """What the key has of it besides its files."""
        fields = keys.stage_fields("tokenizer", self.config)
        if self.functions:
            fields["functions"] = key_fields(self.functions)
        if rule := holdout.small_set_rule(self.data, self.source):
            fields["held_out"] = rule
        return fields


def _texts(config: PipelineConfig, source: Source) -> list[_Text]:
    """The sources of a config: of a mixture each, else the one."""
    alone = [("", config, source)] if not config.data.sources else [
        (name, config.of_source(name), part_of_source(source, name)) for name in config.data.sources
    ]  # fmt: skip
    return [_Text(n, own, text, functions_of(own.data.clean)) for n, own, text in alone]


def trained_key(config: PipelineConfig, source: Source, version: int | None = None) -> str:
    """The key of the vocabulary that is trained on a source, or, of a mixture, trimmed to it.

    `version`: as of `encode_key`.
    """
    return _key(config, _texts(config, source), version)


def _key(config: PipelineConfig, texts: list[_Text], version: int | None = None) -> str:
    version = version or TOKENIZER_VERSION
    if not config.data.sources:
        [text] = texts
        inputs = storage.content_hash(text.source)
        return keys.stage_key("tokenizer", version, text.fields, inputs)
    trimmed = None if config.data.tokenizer.is_set else config.data.vocab_size
    each = [{**text.fields, "source": storage.content_hash(text.source)} for text in texts]
    # Neither the names nor the order of the sources change a vocabulary.
    return keys.stage_key("tokenizer", version, {"trimmed": trimmed}, sorted(each, key=repr))


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
    if not settings.path:
        assert source is not None, "it is made from the source"
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


# ---- from documents ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """Reads the train documents of sources as they are encoded."""

    texts: list[_Text]
    work: Path  # the folder of the units
    progress: Progress
    pool: MakePool | None

    def units(self, text: _Text, tokenizer: Path | None) -> Generator[tuple[Encoded, Mask]]:
        """The units of a source in order, each with the documents of train.

        `tokenizer`: what they are encoded with; None: their bytes.
        """
        data, source = text.data, text.source
        base = Tokenizer.load(tokenizer) if tokenizer else ByteTokenizer()
        folder = self.work / text.name
        folder.mkdir(exist_ok=True)
        rule = holdout.small_set_rule(data, source)
        units = plan_units(
            source, tokenizer, data.clean, folder,
            splits_ends=rule == "ends", functions=text.functions, columns=data.columns,
        )  # fmt: skip
        selection = Selection(data, source, base)
        pool = self.pool
        with pool(units) if pool else Workers(worker_count(data, units)) as workers:
            outputs = {unit: unit.output for unit in units}
            with closing(encode_in_order(workers, "tokenizer", outputs, self.progress)) as in_order:
                encoded: Iterator[Encoded] = in_order
                if selection.is_small:
                    selection.hold_out_minimum(each.draws for each in encoded)
                    encoded = map(Encoded.read, outputs.values())
                for unit, each in zip(units, encoded, strict=True):
                    yield each, selection.choose(unit.split, each)["train"]

    def documents(self, text: _Text) -> Generator[bytes]:
        """The documents of train of a source, in order, in UTF-8."""
        with closing(self.units(text, None)) as units:
            for each, mask in units:
                tokens, lengths, _ = each.select(mask)
                ends = np.cumsum(lengths)
                data = tokens.astype(np.uint8).tobytes()
                for begin, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
                    yield data[begin + 1 : end]  # without end-of-text


def _train(
    key: str, config: PipelineConfig, source: Source, reader: _Reader, staging: Path
) -> Vocabulary:
    settings = config.data.tokenizer
    counted = {"documents": 0, "bytes": 0}
    sizes = [text.source.splits["train"].documents for text in reader.texts]

    def texts() -> Iterator[str]:
        for text, limit in zip(reader.texts, _limits(settings.documents, sizes), strict=True):
            with closing(reader.documents(text)) as documents:
                for document in islice(documents, limit):
                    counted["documents"] += 1
                    counted["bytes"] += len(document)
                    yield document.decode()

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


def _limits(documents: int | None, sizes: list[int]) -> list[int | None]:
    """How many documents of each source are read: `documents` in proportion, at least one of each.

    100 of sources of 600, 300 and 100 documents: 60, 30 and 10.
    """
    if documents is None or len(sizes) == 1:
        return [documents] * len(sizes)
    whole = sum(sizes)
    ends = [round(documents * sum(sizes[: i + 1]) / whole) for i in range(len(sizes))]
    return [max(1, end - begin) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _trim(
    key: str,
    config: PipelineConfig,
    source: Source,
    reader: _Reader,
    staging: Path,
    base: Tokenizer,
) -> Vocabulary:
    """GPT-2's vocabulary trimmed to the train documents of all sources of a mixture."""
    path = reader.work / TOKENIZER
    base.save(path)
    counts, documents, size = np.zeros(base.n_vocab, np.int64), 0, 0
    for text in reader.texts:
        with closing(reader.units(text, path)) as units:
            for each, mask in units:
                tokens, lengths, sizes = each.select(mask)
                counts += np.bincount(tokens, minlength=base.n_vocab)
                documents += len(lengths)
                size += int(sizes.sum())
    tokenizer = trim_vocabulary(base, counts, config.data.vocab_size)
    return _written(staging, tokenizer, Vocabulary(
        key=key, kind="trimmed", source_key=source.key, origin="gpt2", documents=documents,
        bytes=size, **_facts(tokenizer),
    ))  # fmt: skip


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
