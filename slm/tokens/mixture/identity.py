"""The key of the shards of a mixture: by the keys of those of its sources, no weights in it."""

from collections.abc import Mapping

from slm import keys
from slm.config import PipelineConfig

MIX_VERSION = 1
"""Goes up whenever the same shards of the sources give another mix."""


def mix_key(config: PipelineConfig, parts: Mapping[str, str]) -> str:
    """The key of the stage `mix`. `parts`: the key of the shards of each source, by its name."""
    sources = config.data.sources
    fields = {
        "shard_tokens": config.data.shard_tokens,
        "licenses": {name: sources[name].license for name in sources},
    }
    return keys.stage_key("mix", MIX_VERSION, fields, {name: parts[name] for name in sources})
