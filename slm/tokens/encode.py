"""Encode: parquet → token shards `train_00000.bin` …, `val_00000.bin` …, and their tokenizer.

A shard is a header of 256 int32 (magic, version, token count) and the tokens, as in llm.c: uint16,
or uint32 above 65,535 ids. Each document is end-of-text and then its tokens; a shard holds whole
documents. The bytes depend on the source, the tokenizer and the config alone.
"""

import shutil
from pathlib import Path
from typing import Any

from slm import keys, storage
from slm.config import PipelineConfig
from slm.progress import Progress, automatic
from slm.records import Shards, Source
from slm.run_folder import DataRoot
from slm.tokens.encoding import Encoding
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2

ENCODE_VERSION = 1
"""Goes up whenever the same source and config give other shard bytes."""


@storage.hashing_once()
def encode(
    config: PipelineConfig,
    source: Source,
    *,
    tokenizer: Tokenizer | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Shards:
    """The shards of a source in `<root>/shards/<recipe>-<key>/`.

    `tokenizer`: of the model that is to be trained on; None: made from the source.

    An interrupted call leaves its finished units beside that folder; the next one goes on from
    there. Raises UserError where no document is left for train or val, CorruptionError where the
    source cannot be read, SlmError where a worker is killed twice on the same unit.
    """
    data = DataRoot(root)
    key = encode_key(config, source, tokenizer.sha256 if tokenizer else None)
    folder = data.folder("shards", config.recipe, key)
    work = folder.with_name(f".{folder.name}.units")

    def build(staging: Path) -> Shards:
        work.mkdir(exist_ok=True)
        encoding = Encoding(config.data, source, work, staging, progress, tokenizer)
        return encoding.run(key, gpt2(data.path))

    with storage.reading(source.path):
        shards = storage.run_stage(folder, Shards, key, build)
    shutil.rmtree(work, ignore_errors=True)
    return shards


def encode_key(config: PipelineConfig, source: Source, tokenizer_sha256: str | None) -> str:
    """The key of the shards that `encode` makes; of a given tokenizer, where there is one."""
    inputs: Any = storage.content_hash(source)
    if tokenizer_sha256:
        inputs = {"source": inputs, "tokenizer": tokenizer_sha256}
    return keys.stage_key("encode", ENCODE_VERSION, keys.encode_fields(config), inputs)
