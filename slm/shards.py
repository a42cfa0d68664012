"""Encode: parquet → token shards `train_00000.bin` …, `val_00000.bin` …, and their tokenizer.

A shard is a header of 256 int32 (magic, version, token count) and the tokens, as in llm.c: uint16,
or uint32 above 65,535 ids. Each document is end-of-text and then its tokens; a shard holds whole
documents. The bytes depend on the source, the tokenizer and the config alone.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.encoding import FORMATS, HEADER, Encoding
from slm.errors import CorruptionError, UserError
from slm.records import Progress, Shards, Source, silent
from slm.tokenizer import gpt2
from slm.units import Tokens

ENCODE_VERSION = 1
"""Goes up whenever the same source and config give other shard bytes."""


def encode(
    config: PipelineConfig,
    source: Source,
    *,
    root: Path | None = None,
    progress: Progress = silent,
) -> Shards:
    """The shards of a source in `<root>/shards/<recipe>-<key>/`.

    An interrupted call leaves its finished units beside that folder; the next one goes on from
    there. Raises UserError where no document is left for train or val, CorruptionError where the
    source cannot be read, SlmError where a worker is killed twice on the same unit.
    """
    root = root or data_root()
    fields = config.data.encode_fields()
    key = storage.stage_key("encode", ENCODE_VERSION, fields, storage.content_hash(source))
    folder = root / "shards" / f"{config.recipe}-{key[:12]}"
    work = folder.with_name(f".{folder.name}.units")

    def build(staging: Path) -> Shards:
        work.mkdir(exist_ok=True)
        return Encoding(config.data, source, work, staging, progress).run(key, gpt2(root))

    shards = storage.run_stage(folder, Shards, key, build)
    shutil.rmtree(work, ignore_errors=True)
    return shards


# ---- reading ----------------------------------------------------------------------------------


def read_shards(path: Path, *, verify: bool = True) -> Shards:
    """The record of a shards folder; every file is rehashed unless told not to.

    Raises UserError where there are none, CorruptionError where bytes are not those recorded.
    """
    shards = storage.read_record(path, Shards, verify=verify)
    if shards is None:
        raise UserError(f"{path} holds no shards: make them with slm encode RECIPE")
    return shards


def read_tokens(path: Path) -> Tokens:
    """The tokens of one shard, mapped into memory; (T,) uint16 or uint32.

    Raises CorruptionError where the header and the size of the file do not agree.
    """
    try:
        header = np.fromfile(path, "<i4", HEADER)
        size = path.stat().st_size
    except OSError as error:
        raise CorruptionError(f"{path}: cannot be read ({error.strerror})") from error
    for dtype, (magic, version) in FORMATS.items():
        if header[:2].tolist() == [magic, version]:
            count = int(header[2])
            if size != 4 * HEADER + count * dtype.itemsize:
                raise CorruptionError(f"{path}: {size} bytes do not hold {count} tokens")
            tokens = np.memmap(path, dtype, mode="r", offset=4 * HEADER, shape=(count,))
            return np.asarray(tokens)
    raise CorruptionError(f"{path} is not a token shard: it begins with {header[:2].tolist()}")


def documents(shards: Shards, split: str) -> Iterator[Tokens]:
    """The token ids of each document in order, without end-of-text; (T,) each."""
    for name in shards.splits[split].files:
        tokens = read_tokens(shards.path / name)
        start = None
        for stop in _positions(tokens, shards.eot):
            if start is not None:
                yield tokens[start + 1 : stop]
            start = stop
        if start is not None:
            yield tokens[start + 1 :]


def _positions(tokens: Tokens, wanted: int, chunk: int = 1 << 20) -> Iterator[int]:
    for start in range(0, len(tokens), chunk):
        yield from (np.flatnonzero(tokens[start : start + chunk] == wanted) + start).tolist()
