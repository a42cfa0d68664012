"""Shards of two sources, of bytes, and models that know one of them better: made in milliseconds.

The held-out documents are prose, code, prose, prose, code, … so that any first ones have both.
"""

import atexit
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from run_folders import CONFIG, SHARDS_KEY, SOURCE_KEY, TOKENIZER, finish_run, start_run
from tiny_run import CLEAN
from tiny_run import code as clean_code

from slm import storage
from slm.config import DataConfig, PipelineConfig, RegistryConfig, ReportConfig, SourceConfig
from slm.model.gpt import GPT
from slm.records import Run, Shards, ShardsPart, ShardSplit, Source, SourcePart, SourceSplit
from slm.run_folder import RunFolder
from slm.source.stories import stories
from slm.tokens.mixture.reading import VAL_PARTS
from slm.tokens.shards.reading import EXCLUDED, read_shards
from slm.training import launch
from slm.training.loop import train

PROSE, CODE = "prose", "code"
SOURCES = (CODE, PROSE)  # in the order of a record that is read
MIXTURE = CONFIG.model_copy(update={
    "data": DataConfig(sources={
        PROSE: SourceConfig(source="stories", weight=0.7, license="CC0-1.0"),
        CODE: SourceConfig(source="files", path="code", weight=0.3),
    }),
    "registry": RegistryConfig(model="slm"),
})  # fmt: skip


def code(first: int, last: int) -> list[str]:
    """So many lines of arithmetic, a few a document."""
    numbers = (range(7 * n, 7 * n + 4) for n in range(first, last))
    return ["".join(f"x{n} = f({n * n % 97})\n" for n in each) for each in numbers]


def prose(first: int, last: int) -> list[str]:
    """So many beginnings of stories."""
    return [text[:160] for text in stories(1, first, last)]


TEXTS = {
    "train": {PROSE: prose(0, 60), CODE: code(0, 40)},
    "val": {PROSE: prose(60, 102), CODE: code(40, 61)},
}
DOCUMENTS = {name: [*TEXTS["train"][name], *TEXTS["val"][name]] for name in SOURCES}
ORDER = [(PROSE, CODE, PROSE)[n % 3] for n in range(63)]  # of the held-out documents


def held_out() -> list[str]:
    """The held-out documents in order."""
    left = {name: iter(texts) for name, texts in TEXTS["val"].items()}
    return [next(left[name]) for name in ORDER]


def start_mixed_run(root: Path, config: PipelineConfig = MIXTURE, key: str = "ab" * 32) -> Path:
    """`start_run` on the shards of the mixture."""
    commit_mixture(root, config.recipe)
    return start_run(root, config, key)


def finish_mixed_run(root: Path, prose: int, code: int, key: str = "ab") -> Run:
    """A finished run whose model has made so many steps on each source. `key`: two digits."""
    path = start_mixed_run(root, key=key * 32)
    return finish_run(path, key=key * 32, model=model_of(prose, code))


def commit_mixture(root: Path, recipe: str) -> Path:
    """The mixture's source and shards, where `start_run` looks for its own."""
    shards_folder = root / "shards" / f"{recipe}-{SHARDS_KEY[:12]}"
    if shards_folder.exists():
        return shards_folder
    write_source(root / "sources" / f"{recipe}-{SOURCE_KEY[:12]}", SOURCE_KEY, DOCUMENTS)
    staging = shards_folder.with_suffix(".tmp")
    staging.mkdir(parents=True)
    trains = {
        name: _write(staging, f"train_{i:05}.bin", TEXTS["train"][name])
        for i, name in enumerate(SOURCES)
    }
    splits = {
        "train": ShardSplit(
            files=[file for part in trains.values() for file in part.files],
            documents=sum(part.documents for part in trains.values()),
            tokens=sum(part.tokens for part in trains.values()),
            bytes=sum(part.bytes for part in trains.values()),
        ),
        "val": _write(staging, "val_00000.bin", held_out()),
    }
    np.save(staging / VAL_PARTS, np.array([SOURCES.index(name) for name in ORDER], np.uint8))
    np.save(staging / EXCLUDED, np.empty((0, 4), np.int64))
    TOKENIZER.save(staging / "tokenizer.tiktoken")
    parts = {
        name: ShardsPart(
            key=str(i) * 64,
            source_key=str(i + 2) * 64,
            train=trains[name],
            val=_count(TEXTS["val"][name]),
            excluded={"in the held-out text of prose": 2} if name == CODE else {},
            license=MIXTURE.data.sources[name].license,
        )
        for i, name in enumerate(SOURCES)
    }
    shards = Shards(
        key=SHARDS_KEY, source_key=SOURCE_KEY, tokenizer_sha256=TOKENIZER.sha256,
        vocab_size=TOKENIZER.n_vocab, eot=TOKENIZER.eot, splits=splits, parts=parts,
    )  # fmt: skip
    storage.commit(staging, shards_folder, shards)
    return shards_folder


def write_source(folder: Path, key: str, texts: Mapping[str, Sequence[str]]) -> Source:
    """The source of a mixture with these documents, all of them in train."""
    staging = folder.with_suffix(".tmp")
    staging.mkdir(parents=True)
    parts = {}
    for i, name in enumerate(SOURCES):
        file = f"{name}-train_00000.parquet"
        pq.write_table(pa.table({"text": list(texts[name])}), staging / file)
        split = SourceSplit(
            files=[file],
            documents=len(texts[name]),
            bytes=sum(len(text.encode()) for text in texts[name]),
        )
        parts[name] = SourcePart(
            key=str(i + 2) * 64, dataset=f"{name} of a test", revision="r1", splits={"train": split}
        )
    every = [part.splits["train"] for part in parts.values()]
    whole = SourceSplit(
        files=[file for split in every for file in split.files],
        documents=sum(split.documents for split in every),
        bytes=sum(split.bytes for split in every),
    )
    source = Source(
        key=key, dataset=" + ".join(SOURCES), revision="r1", splits={"train": whole}, parts=parts
    )
    return storage.commit(staging, folder, source)


def _count(texts: list[str]) -> ShardSplit:
    size = sum(len(text.encode()) for text in texts)
    return ShardSplit(files=[], documents=len(texts), tokens=size + len(texts), bytes=size)


def _write(folder: Path, name: str, texts: list[str]) -> ShardSplit:
    ids = np.concatenate([[TOKENIZER.eot, *TOKENIZER.encode(text)] for text in texts])
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    (folder / name).write_bytes(header.tobytes() + ids.astype("<u2").tobytes())
    return _count(texts).model_copy(update={"files": [name]})


@cache
def model_of(prose: int, code: int) -> GPT:
    """A model after so many steps of AdamW on the bytes of each source, in turn."""
    torch.manual_seed(0)
    model = GPT(CONFIG.model, TOKENIZER.n_vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = {
        name: torch.tensor([i for text in texts for i in TOKENIZER.encode(text)])
        for name, texts in TEXTS["train"].items()
    }
    for step in range(max(prose, code)):
        for name, steps in ((PROSE, prose), (CODE, code)):
            if step >= steps:
                continue
            starts = torch.randint(len(ids[name]) - 33, (16,))
            rows = torch.stack([ids[name][start : start + 33] for start in starts.tolist()])
            logits = model.logits(model(rows[:, :-1]))
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


TRAINED = MIXTURE.model_copy(update={
    "train": MIXTURE.train.model_copy(update={
        "max_steps": 4, "evaluate_every": 2, "evaluate_documents": 10, "keep_checkpoints": 4,
        "threads": 1, "device": "cpu",
    }),
    "report": ReportConfig(
        prompts=("Once",), temperatures=(0.8,), top_ks=(10,), max_new_tokens=8
    ),
})  # fmt: skip


@cache
def _trained() -> Path:
    session = Path(mkdtemp(prefix="slm-two-sources-"))
    atexit.register(shutil.rmtree, session, ignore_errors=True)
    shards = read_shards(commit_mixture(session, TRAINED.recipe))
    run = launch.prepare(TRAINED, shards, root=session)
    with clean_code(CLEAN):
        train(run)
    return run.path


def copy_trained(root: Path) -> RunFolder:
    """Put a run into a data folder that was trained on the mixture, four steps, once a session."""
    run = _trained()
    shutil.copytree(run.parents[1], root, dirs_exist_ok=True)
    return RunFolder(root / "runs" / run.name)
