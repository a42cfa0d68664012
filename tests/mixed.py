"""Shards of one text as if its files were sources of a mixture: for tests of the order."""

from typing import Any

import numpy as np

from slm.config import DataConfig, PipelineConfig, SourceConfig, TextConfig
from slm.records import Shards, ShardsPart, ShardSplit
from slm.storage import write_record
from slm.tokens.shards.layout import total
from slm.tokens.shards.reading import EXCLUDED

NAMES = ("wiki", "code", "chat")


def as_mixture(shards: Shards, count: int = 2) -> Shards:
    """The shards with every file of train given to one of the first `count` names, in turn."""
    train = shards.splits["train"]
    assert len(train.files) >= count, "encode with a smaller data.shard_tokens"
    parts = {}
    for place, name in enumerate(NAMES[:count]):
        files = train.files[place::count]
        counts = {file: train.counts[file] for file in files}
        split = ShardSplit(files=files, counts=counts, **total(counts.values()))
        val = train.counts[files[0]].model_copy(update={"documents": 0, "tokens": 0, "bytes": 0})
        parts[name] = ShardsPart(key=name * 8, source_key="s" * 64, train=split, val=val)
    np.save(shards.path / EXCLUDED, np.empty((0, 4), np.int64))
    mixed = shards.model_copy(update={"parts": dict(sorted(parts.items()))})
    write_record(shards.path, mixed)
    return mixed


def mixed_config(
    config: PipelineConfig, phases: tuple[Any, ...] = (), **sources: dict[str, Any]
) -> PipelineConfig:
    """A config with sources by name: their weights and epochs."""
    made = {name: SourceConfig(**settings) for name, settings in sources.items()}
    alone = TextConfig.model_fields  # of one dataset
    shared = {name: value for name, value in config.data if name not in alone}
    data = DataConfig(**{**shared, "sources": made, "phases": phases})
    return config.model_copy(update={"data": data})
