"""Encode by what `data.runner` names: processes of this machine, or the workers of a cluster."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import slm.tokens.encode
import slm.tokens.vocabulary
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.progress import Progress, automatic
from slm.records import Parent, Shards, Source, Vocabulary
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

if TYPE_CHECKING:
    from slm.tokens.encode import MakePool
    from slm.tokens.units import Pool, Unit


def make_tokenizer(
    config: PipelineConfig,
    source: Source,
    *,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Vocabulary:
    """The vocabulary of `data.tokenizer` in `<root>/tokenizers/<name>-<key>/`: trained, or given.

    >>> vocabulary = slm.make_tokenizer(config, source)
    >>> shards = slm.encode(config, source, vocabulary=vocabulary)

    It is trained on the documents of train alone, which are read by `data.runner`.

    Raises UserError where `data.tokenizer` is not set, a library that it needs is not installed, or
    a given file is not byte-level BPE; CorruptionError where the source cannot be read.
    """
    return slm.tokens.vocabulary.make_tokenizer(
        config, source, root=root, progress=progress, pool=_pool(config)
    )


def encode(
    config: PipelineConfig,
    source: Source,
    *,
    parent: Parent | None = None,
    vocabulary: Vocabulary | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Shards:
    """The shards of a source in `<root>/shards/<name>-<key>/`, encoded by `data.runner`.

    Of a mixture each of its sources is encoded alone, and `mix` joins them.

    An interrupted call leaves its finished units next to that folder, and the next one resumes
    from them, by whatever runner.

    Args:
        parent: the model that is to be trained further, which has its vocabulary; None: that of
            `data.tokenizer`, or one that is made from the source.
        vocabulary: of `data.tokenizer`, as `make_tokenizer` returns it; not with a parent.

    Raises UserError where no document is left for train or val, or a library that cleaning or the
    runner needs is not installed, CorruptionError where the source cannot be read, SlmError where
    workers are killed again and again on the same unit.
    """
    return slm.tokens.encode.encode(
        config,
        source,
        tokenizer=_given(parent, vocabulary),
        root=root,
        progress=progress,
        pool=_pool(config),
    )


def encode_part(
    config: PipelineConfig,
    source: Source,
    name: str,
    *,
    parent: Parent | None = None,
    vocabulary: Vocabulary | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Shards:
    """The shards of one source of a mixture, as `encode` makes them of that source alone.

    Args:
        source: of the mixture.
        name: of the source, in `data.sources`.

    The other arguments, and what it raises, are those of `encode`.
    """
    return slm.tokens.encode.encode_part(
        config,
        source,
        name,
        tokenizer=_given(parent, vocabulary),
        root=root,
        progress=progress,
        pool=_pool(config),
    )


def _given(parent: Parent | None, vocabulary: Vocabulary | None) -> Tokenizer | None:
    """The tokenizer that comes with a model or a vocabulary; None: GPT-2's."""
    if parent and vocabulary:
        raise UserError(f"{parent.model} has a vocabulary of its own: give parent, or vocabulary")
    given = parent or vocabulary
    return Tokenizer.load(given.path / TOKENIZER) if given else None


def _pool(config: PipelineConfig) -> "MakePool | None":
    """What makes the workers of `data.runner`; None: processes of this machine."""

    @contextmanager
    def cluster(units: "list[Unit]") -> Iterator["Pool"]:
        from slm.tokens.workers import check_runner

        check_runner(config.data)
        if "prefect" not in sys.modules:  # the display shows what there is to show
            os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        from slm.orchestration.cluster import Cluster

        with Cluster(config.data, units) as pool:
            yield pool

    return None if config.data.runner == "local" else cluster
