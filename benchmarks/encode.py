"""Encoding throughput: ours, one tiktoken thread, and `datasets.map`, in one run.

All three read the same parquet documents on the same machine in turn. Ours is the whole stage in a
process of its own: parquet → shards on disk, hashed, committed, and verified once more. tiktoken's
loop gets its texts in memory and discards the tokens. The third is the preparation script of
nanoGPT: `datasets.map` with as many processes as cores, then a numpy memmap.

Last, the loader reads these shards, as one text and as mixtures of 2 and of 8 sources, compared
with the training loop of `quickstart`.

With `--runner dask` or `ray` the same stage is done by processes of this machine and by the workers
of a cluster of as many, in turn, to the same bytes. That takes as many seconds longer as the
Prefect server and the cluster need to start and to end, which a source of one document shows, and
then is as fast as what is left: `without the start`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import limits
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from slm.config import PipelineConfig, data_root
from slm.machine import available_cores
from slm.orchestration.encoding import encode
from slm.recipes import load_recipe
from slm.records import FileEntry, Shards, Source
from slm.source.download import download
from slm.source.stories import stories
from slm.storage import read_record
from slm.tokens.shards.reading import read_shards, read_tokens
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2

VOCAB_SIZES = (50_257, 4096)


def run(
    megabytes: int = 200,
    data: Path | None = None,
    repeats: int = 3,
    peers: bool = True,
    runner: str | None = None,
) -> dict[str, Any]:
    """Measure and return `{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        megabytes: of text (10**6 UTF-8 bytes) to encode.
        data: parquet files for half of the documents, repeated; the others are generated stories.
        repeats: of each measurement; the median is reported.
        peers: whether to measure tiktoken and `datasets.map` too.
        runner: `dask` or `ray`, to measure that next to processes of this machine, and no peer.

    `ratio` is the value divided by that of one tiktoken thread; the loader's, by the training loop.
    """
    parent = data_root() / "benchmarks"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix="encode-") as folder:
        source = _make_source(Path(folder), megabytes, data)
        size = sum(split.bytes for split in source.splits.values())
        seconds: dict[str, list[float]] = {}
        memory: list[float] = []
        cores = available_cores()
        tokenizer = gpt2(Path(folder))
        if runner:
            rows = _on_a_cluster(source, size, Path(folder), runner, repeats)
            return _result(size, rows)
        for _ in range(repeats):
            for vocab_size in VOCAB_SIZES:
                elapsed, peak = _measured(partial(_ours, source, Path(folder), vocab_size))
                seconds.setdefault(f"slm, {vocab_size:,} ids, {cores} cores", []).append(elapsed)
                memory.append(peak)
            if peers:
                seconds.setdefault("tiktoken, 1 thread", []).append(_tiktoken(source, tokenizer))
                seconds.setdefault(f"datasets.map, {cores} processes", []).append(
                    _datasets_map(source, Path(folder), tokenizer, cores)
                )
        loading, training = _loader(Path(folder))
    speeds = {name: size / 1e6 / statistics.median(times) for name, times in seconds.items()}
    one = speeds.get("tiktoken, 1 thread")
    rows = [
        limits.row(name, "throughput", speed, "MB/s", speed / one if one else None)
        for name, speed in speeds.items()
    ]
    rows.append(limits.row("slm, all processes", "peak memory", max(memory), "MB"))
    for name, speed in {**loading, "training loop, quickstart": training}.items():
        rows.append(limits.row(name, "throughput", speed, "tokens/s", speed / training))
    return _result(size, rows)


def _result(size: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    limit = limits.measure()
    return {
        "machine": limits.machine(),
        "limit": limit._asdict(),
        "megabytes": round(size / 1e6),
        "rows": rows + limit.as_rows(),
    }


# ---- the documents ----------------------------------------------------------------------------


def _make_source(folder: Path, megabytes: int, data: Path | None) -> Source:
    """The documents as the download stage leaves them."""
    if data is None:
        size = sum(len(text.encode()) for text in stories(1337, 0, 1000)) / 1000
        fields = {"source": "stories", "documents": int(megabytes * 1e6 / size) + 1}
    else:
        _mix(data, folder / "mixed.parquet", int(megabytes * 1e6))
        fields = {"source": "files", "path": str(folder / "mixed.parquet")}
    return download(_config(fields), root=folder)


def _mix(data: Path, target: Path, size: int) -> None:
    """Write `size` bytes of text: generated stories and documents of `data` in alternation."""
    paths = sorted(data.rglob("*.parquet")) if data.is_dir() else [data]
    texts = [t for path in paths for t in pq.read_table(path, columns=["text"])["text"].to_pylist()]
    documents = chain.from_iterable(zip(stories(1337, 0, sys.maxsize), cycle(texts), strict=False))
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(target, schema) as writer:
        while size > 0:
            batch = list(islice(documents, 10_000))
            writer.write_table(pa.table([batch], schema=schema))
            size -= sum(len(text.encode()) for text in batch)


def _config(data: dict[str, Any]) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {"recipe": "bench", "data": data, "train": {"max_steps": 1}}
    )


def _texts(source: Source) -> list[str]:
    return [
        text
        for split in source.splits.values()
        for name in split.files
        for text in pq.read_table(source.path / name)["text"].to_pylist()
    ]


# ---- the three ways ---------------------------------------------------------------------------


def _ours(source: Source, folder: Path, vocab_size: int, runner: str = "local") -> float:
    """Seconds from parquet to verified shards, timed by a fresh process around its own work."""
    shutil.rmtree(folder / "shards", ignore_errors=True)
    arguments = [str(source.path), str(vocab_size), str(folder), runner]
    command = [sys.executable, __file__, "--encode", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _on_a_cluster(
    source: Source, size: int, folder: Path, runner: str, repeats: int
) -> list[dict[str, Any]]:
    """Rows of the stage by processes of this machine, and by a cluster of as many workers."""
    one = download(_config({"source": "stories", "documents": 12}), root=folder / "one")
    seconds: dict[str, list[float]] = {}
    first: dict[str, dict[str, FileEntry]] = {}
    for _ in range(repeats):
        for name in ("local", runner):
            for what, of in (("all", source), ("start", one)):
                elapsed = _ours(of, folder, VOCAB_SIZES[0], name)
                seconds.setdefault(f"{name} {what}", []).append(elapsed)
                shards = read_record(next((folder / "shards").glob("bench-*")), Shards)
                assert shards is not None
                if shards.files != first.setdefault(what, shards.files):
                    raise SystemExit(f"the shards of {name} have other bytes")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    start = median[f"{runner} start"] - median["local start"]
    speed = {name: size / 1e6 / median[f"{name} all"] for name in ("local", runner)}
    without = size / 1e6 / max(1e-9, median[f"{runner} all"] - start)
    rows = [
        (
            f"{name}, {available_cores()} workers",
            "throughput",
            value,
            "MB/s",
            value / speed["local"],
        )
        for name, value in (*speed.items(), (f"{runner} without the start", without))
    ]
    return [
        limits.row(*row) for row in (*rows, (f"{runner}, start and end", "time", start, "s", None))
    ]


def _encode_once(source_path: Path, vocab_size: int, root: Path, runner: str) -> None:
    source = read_record(source_path, Source, verify=False)
    assert source is not None
    fields = {"source": "stories", "documents": 1, "vocab_size": vocab_size, "runner": runner}
    config = _config(fields)
    begin = time.perf_counter()
    shards = encode(config, source, root=root)
    read_shards(shards.path)
    sys.stdout.write(f"{time.perf_counter() - begin}\n")


def _tiktoken(source: Source, tokenizer: Tokenizer) -> float:
    texts, encoding = _texts(source), tokenizer.encoding
    begin = time.perf_counter()
    for text in texts:
        encoding.encode_ordinary(text)
    return time.perf_counter() - begin


def _datasets_map(source: Source, folder: Path, tokenizer: Tokenizer, processes: int) -> float:
    """The steps of nanoGPT's prepare.py."""
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    encoding, eot = tokenizer.encoding, tokenizer.eot

    def process(example: dict[str, str]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(example["text"])
        ids.append(eot)
        return {"ids": ids, "len": len(ids)}

    files = [str(source.path / name) for split in source.splits.values() for name in split.files]
    begin = time.perf_counter()
    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(folder / "datasets")
    )
    encoded = rows.map(process, remove_columns=["text"], num_proc=processes)
    total = int(np.sum(encoded["len"], dtype=np.uint64))
    shard = np.memmap(folder / "datasets.bin", dtype=np.uint16, mode="w+", shape=(total,))
    at, batches = 0, min(1024, len(encoded))
    for i in range(batches):
        batch = encoded.shard(num_shards=batches, index=i, contiguous=True).with_format("numpy")
        ids = np.concatenate(list(batch["ids"]))
        shard[at : at + len(ids)] = ids
        at += len(ids)
    shard.flush()
    elapsed = time.perf_counter() - begin
    shutil.rmtree(folder / "datasets")
    return elapsed


# ---- the loader -------------------------------------------------------------------------------


def _loader(folder: Path) -> tuple[dict[str, float], float]:
    """Tokens/s of the loader by its name, and of training, in a process set up as training is."""
    from slm.training.child import child_environment

    command = [sys.executable, __file__, "--load", str(next((folder / "shards").glob("bench-*")))]
    environment = child_environment(load_recipe("quickstart"))
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    loading, training = json.loads(done.stdout)
    return loading, training


def _load_and_train(path: Path, seconds: float = 3.0) -> tuple[dict[str, float], float]:
    import torch

    from slm.records import Plan
    from slm.training.plan import pick_precision
    from slm.training.session import synthetic_session
    from slm.training.step import train_step

    config = load_recipe("quickstart")
    torch.set_num_threads(available_cores())
    shards = read_shards(path, verify=False)
    tokens = [read_tokens(path / name) for name in shards.splits["train"].files]
    rows = config.train.tokens_per_step // config.model.seq_len
    plan = Plan(
        max_steps=1,
        rows=rows,
        micro_batch_size=rows,
        world_size=1,
        device="cpu",
        precision=pick_precision("auto", "cpu"),
        threads=available_cores(),
        compile=False,
    )
    session = synthetic_session(config, plan, shards.vocab_size)

    def steps_in(step: Callable[[], Any]) -> float:
        step()
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            step()
            count += 1
        return count * config.train.tokens_per_step / (time.perf_counter() - begin)

    loading = {}
    for count in (1, 2, 8):
        batches = _mixed(tokens, count, config.model.seq_len, rows).batches(0)
        name = "loader" if count == 1 else f"loader, mixture of {count}"
        loading[name] = steps_in(partial(next, batches))
    x, y = next(batches)
    return loading, steps_in(lambda: train_step(session, x, y))


def _mixed(tokens: list[Any], count: int, seq_len: int, rows: int) -> Any:
    """A loader of the same tokens as one text, or as the sources of a mixture."""
    from slm.tokens.loader import Loader
    from slm.tokens.mixture.order import Part, make_order, windows_in

    pieces = [np.array_split(shard, count) for shard in tokens]
    streams = [[shard[i] for shard in pieces] for i in range(count)]
    parts = [
        Part(f"part {i}", windows_in(sum(map(len, stream)), seq_len), (float(i + 1),))
        for i, stream in enumerate(streams)
    ]
    order = make_order(parts, seed=1) if count > 1 else None
    return Loader(*streams, seq_len=seq_len, rows=rows, seed=1, order=order)


# ---- measuring --------------------------------------------------------------------------------


def _measured(work: Callable[[], float]) -> tuple[float, float]:
    """The result of `work`, and the peak resident memory of all child processes in MB."""
    peak, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.05):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return work(), peak
    finally:
        stop.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--data", type=Path, help="parquet files to mix with the stories")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="measure slm alone")
    parser.add_argument("--runner", choices=("dask", "ray"), help="measure a cluster of it too")
    parser.add_argument("--encode", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        sys.stdout.write(json.dumps(_load_and_train(options.load)))
        return
    if options.encode:
        source, vocab_size, root, runner = options.encode
        _encode_once(Path(source), int(vocab_size), Path(root), runner)
        return
    result = run(
        options.megabytes, options.data, options.repeats, not options.alone, options.runner
    )
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    limits.show(result)


if __name__ == "__main__":
    main()
