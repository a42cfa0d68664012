"""Encode by what `data.runner` names: processes of this machine, or the workers of a cluster."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import slm.tokens.encode
from slm.config import PipelineConfig
from slm.progress import Progress, automatic
from slm.records import Parent, Shards, Source
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

if TYPE_CHECKING:
    from slm.tokens.units import Pool, Unit


def encode(
    config: PipelineConfig,
    source: Source,
    *,
    parent: Parent | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Shards:
    """The shards of a source in `<root>/shards/<name>-<key>/`, encoded by `data.runner`.

    An interrupted call leaves its finished units next to that folder, and the next one resumes
    from them, by whatever runner.

    Args:
        parent: the model that is to be trained further, which has its vocabulary; None: that is
            made from the source.

    Raises UserError where no document is left for train or val, or a library that cleaning or the
    runner needs is not installed, CorruptionError where the source cannot be read, SlmError where
    workers are killed again and again on the same unit.
    """

    @contextmanager
    def cluster(units: "list[Unit]") -> Iterator["Pool"]:
        from slm.tokens.workers import check_runner

        check_runner(config.data)
        if "prefect" not in sys.modules:  # the display shows what there is to show
            os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        from slm.orchestration.cluster import Cluster

        with Cluster(config.data, units) as pool:
            yield pool

    return slm.tokens.encode.encode(
        config,
        source,
        tokenizer=Tokenizer.load(parent.path / TOKENIZER) if parent else None,
        root=root,
        progress=progress,
        pool=None if config.data.runner == "local" else cluster,
    )
