"""What a training reads of shards, source by source."""

from slm.records import Shards
from slm.tokens.shards.layout import Tokens
from slm.tokens.shards.reading import read_tokens


def train_streams(shards: Shards) -> list[list[Tokens]]:
    """The training tokens of each part by name; of shards without parts one list of all."""
    parts = [part.train for _, part in sorted(shards.parts.items())] or [shards.splits["train"]]
    return [[read_tokens(shards.path / name) for name in part.files] for part in parts]
