"""What each stage costs in seconds and memory, against how much there is of what it works on.

Every point is measured in a fresh process, and its data are deleted before the next one: text from
10 MB to 2 GB, models from 0.7 to 30 million parameters, one to four processes. The text is 20,000
generated stories, repeated, each copy made distinct by a number at its end; `long documents` are
16 stories in one, so that what a document costs and what a byte costs can be told apart.

A cost is a fixed part and a part per document, byte, token or parameter, none of them negative:
non-negative least squares of the relative error, since a series covers orders of magnitude. Next to
it are the largest relative error, 95 % intervals (the residuals resampled a thousand times), and
the slope of the logarithms, which is near 1 where a cost grows in proportion.

What it comes to for a billion documents and 64 GPUs is arithmetic on these costs; what no machine
here can measure is assumed, and listed as such. A cost of too few points, of points too near to
each other or far from its curve is not projected: the reason is given in place of a value.

`--quick` takes some two minutes and shows that it works. The whole takes ten or more, and can be
measured one `--part` after another, and some `--points` of a part after others, which `--write
FOLDER` collects: what is measured again replaces what was there.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import limits
import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.optimize import nnls

from slm.config import PipelineConfig, data_root
from slm.machine import available_cores, available_memory
from slm.records import Run, Shards, Source
from slm.source.stories import stories
from slm.storage import make_folder, read_record

Point = dict[str, Any]
Values = npt.NDArray[np.float64]

BLOCK_DOCUMENTS = 20_000  # that are repeated
IN_PROCESS = 30e6  # bytes: below it one process encodes alone, and its costs are others
LONG = 16  # stories in a long document
SEQ_LEN = 128
SHAPES = {96: 3, 128: 4, 192: 5, 256: 6, 384: 7, 512: 9}  # of a model: its width → its layers
PLANS: dict[str, dict[str, Any]] = {  # the points of each part, in what they are counted in
    "full": {
        "text": (10, 40, 70, 100, 200, 300, 500), "large": (1000, 2000), "long": (20, 100, 500),
        "near": (1, 2, 4, 8, 12, 16), "processes": (1, 2, 3, 4), "models": tuple(SHAPES),
        "evaluation": (8, 32, 96), "middle": 256, "tokens_per_step": (1024, 2048), "repeats": 2,
        "steps": 10,
    },
    "quick": {
        "text": (1, 2, 4), "large": (), "long": (2,), "near": (1,), "processes": (1, 2),
        "models": (96, 128), "evaluation": (), "middle": 128, "tokens_per_step": (512,),
        "repeats": 1, "steps": 3,
    },
}  # fmt: skip
STEP_TOKENS = 4096  # of the series by parameters
LEAVES = 12  # micro-batches of a step: as much for each of one, two, three or four processes

RESAMPLES = 1000
SPREAD = 8.0  # of what a cost is per: the largest over the smallest, at least
MAX_ERROR = 0.25  # of the worst point, relative

# What the figures of a billion documents are made for.
TARGET = {
    "documents": 1e9, "gpus": 64, "parameters": 124e6, "tokens_per_step": 524_288,
    "tokens_per_pass": 8192, "held_out": 0.01,
}  # fmt: skip
ASSUMED = {
    "tokens_per_second_of_a_gpu": 448_687,  # measured on an H100, 124 M, 36.2 % of its peak
    "bytes_per_second_between_gpus": 25e9,  # for each of them: 200 Gbit/s
    "bytes_per_second_of_a_download": 100e6,
    "bytes_per_second_of_the_storage": 2e9,  # of a shared folder, read by one machine
    "memory_of_a_machine": 256e9,
}


def run(
    quick: bool = False,
    parts: Sequence[str] | None = None,
    chosen: Sequence[int] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure; returns `{"machine", "points", "costs", "at_scale", "assumed", "rows"}`.

    Args:
        quick: a few small points, in some two minutes.
        parts: of `PARTS`, what to measure; None: all.
        chosen: of the points of these parts, those to measure; None: all.
        folder: where `scaling.json` and `scaling.md` are written, and the other points are taken
            from; None: nowhere.
    """
    plan = PLANS["quick" if quick else "full"]
    points: list[Point] = []
    if folder and (folder / "scaling.json").exists():
        points = json.loads((folder / "scaling.json").read_text())["points"]
    parent = make_folder(data_root() / "benchmarks")
    for name in PARTS if parts is None else parts:
        of = [value for value in plan[name] if chosen is None or value in chosen]
        points = [p for p in points if p["part"] != name or p["at"] not in of]
        with tempfile.TemporaryDirectory(dir=parent, prefix="scaling-") as place:
            for point in PARTS[name](Path(place), plan, of):
                points.append({"part": name, **point})
                if folder:  # before the next one, which may be ended
                    _write(folder, "scaling.json", json.dumps({"points": points}))
    order = list(PARTS)
    points.sort(key=lambda p: (order.index(p["part"]), p["at"]))
    result = summary(points, quick)
    if folder:
        _write(folder, "scaling.json", json.dumps(result, indent=1))
        _write(folder, "scaling.md", markdown(result))
    return result


def _write(folder: Path, name: str, text: str) -> None:
    (make_folder(folder) / name).write_text(text.rstrip() + "\n")


def summary(points: list[Point], quick: bool = False) -> dict[str, Any]:
    """All that follows from the points."""
    curves = {cost: fit(cost, points) for cost in COSTS}
    scale = at_scale(curves, points)
    rows = [
        limits.row(f"{cost.stage}, {cost.of}", name, c, "")
        for cost, curve in curves.items()
        for name, c in zip(_names(cost.terms), curve["coefficients"], strict=False)
    ]
    rows += [limits.row("a billion documents", n["what"], n["value"], n["unit"]) for n in scale
             if n["value"] is not None]  # fmt: skip
    return {
        "machine": {**limits.machine(), "memory_bytes": available_memory()},
        "quick": quick,
        "points": points,
        "costs": [
            {**cost._asdict(), **{name: v for name, v in curve.items() if name != "resampled"}}
            for cost, curve in curves.items()
        ],
        "target": TARGET,
        "assumed": ASSUMED,
        "at_scale": scale,
        "rows": rows,
    }


# ---- the points -------------------------------------------------------------------------------


def _text(place: Path, plan: dict[str, Any], megabytes: Sequence[int]) -> Iterator[Point]:
    """Download and encode, of more and more text."""
    for size in megabytes:
        yield from _download_and_encode(place, "text", size)


def _long(place: Path, plan: dict[str, Any], megabytes: Sequence[int]) -> Iterator[Point]:
    """The same of long documents."""
    for size in megabytes:
        yield from _download_and_encode(place, "long documents", size, LONG)


def _near(place: Path, plan: dict[str, Any], megabytes: Sequence[int]) -> Iterator[Point]:
    """Encode with near-duplicates dropped, of distinct documents."""
    for size in megabytes:
        clean = {"near_duplicates": 0.8}
        yield from _download_and_encode(place, "near-duplicates", size, clean=clean)


def _download_and_encode(
    place: Path, series: str, megabytes: int, joined: int = 1, clean: dict[str, Any] | None = None
) -> Iterator[Point]:
    root, text = make_folder(place / "root"), place / "text.parquet"
    _write_text(text, megabytes * 10**6, joined)
    job: dict[str, Any] = {"root": str(root), "data": {"source": "files", "path": str(text)}}
    facts, point = _measure({"stage": "download", **job})
    source = facts.pop("path")
    text.unlink()
    if clean is None:
        yield _point("download", series, megabytes, facts, point)
    job["data"] |= {"clean": clean or {"exact_duplicates": "everywhere"}}
    shards, point = _measure({"stage": "encode", **job, "source": source})
    yield _point("encode", series, megabytes, {**facts, **shards}, point)
    shutil.rmtree(root)


def _processes(place: Path, plan: dict[str, Any], counts: Sequence[int]) -> Iterator[Point]:
    """A step of the same micro-batches by one to four processes, of one thread each."""
    data = _shards(place, 2)
    tokens = LEAVES * 4 * SEQ_LEN
    job = {"stage": "train", "root": str(place), **data, "width": plan["middle"],
           "tokens_per_step": tokens, "steps": plan["steps"]}  # fmt: skip
    for _ in range(plan["repeats"]):
        for count in counts:
            facts, point = _measure({**job, "processes": count})
            seconds = {"seconds": facts["step_seconds"]}
            yield _point("train", "processes", count, facts, {**point, **seconds})


def _models(place: Path, plan: dict[str, Any], widths: Sequence[int]) -> Iterator[Point]:
    """Training, evaluation and sampling by parameters; training by tokens per step."""
    data = _shards(place, 2)
    job = {"stage": "train", "root": str(place), "steps": plan["steps"], **data}
    for width in widths:
        for tokens in (*(plan["tokens_per_step"] if width == plan["middle"] else ()), STEP_TOKENS):
            facts, point = _measure({**job, "width": width, "tokens_per_step": tokens})
            seconds = {"seconds": facts["step_seconds"]}
            yield _point("train", "parameters", width, facts, {**point, **seconds})
        yield _evaluate(place, width, facts, data)
        own = {"parameters": facts["parameters"]}
        sampled, point = _measure({"stage": "sample", "root": str(place), "run": facts["path"]})
        yield _point("sample", "parameters", width, {**own, **sampled}, point)


def _evaluation(place: Path, plan: dict[str, Any], megabytes: Sequence[int]) -> Iterator[Point]:
    """Evaluation of a small model on more and more documents."""
    first = _shards(place, 2)
    job = {"stage": "train", "root": str(place), "steps": 1, **first}
    facts, _ = _measure({**job, "width": min(SHAPES), "tokens_per_step": STEP_TOKENS})
    for size in megabytes:
        yield _evaluate(place, size, facts, _shards(place, size))


def _evaluate(place: Path, at: int, of: Point, data: Point) -> Point:
    job = {"stage": "evaluate", "root": str(place), "run": of["path"], "shards": data["shards"]}
    facts, point = _measure(job)
    return _point("evaluate", "documents", at, {**facts, "parameters": of["parameters"]}, point)


PARTS: dict[str, Callable[[Path, dict[str, Any], Sequence[int]], Iterator[Point]]] = {
    "text": _text, "large": _text, "long": _long, "near": _near, "processes": _processes,
    "models": _models, "evaluation": _evaluation,
}  # fmt: skip


def _shards(root: Path, megabytes: int) -> Point:
    """Shards of so much text, for a model of a small vocabulary."""
    text = root / f"{megabytes}.parquet"
    _write_text(text, megabytes * 10**6)
    job: dict[str, Any] = {
        "root": str(root),
        "data": {"source": "files", "path": str(text), "vocab_size": 4096, "val_fraction": 0.1},
    }
    source, _ = _measure({"stage": "download", **job})
    shards, _ = _measure({"stage": "encode", **job, "source": source["path"]})
    return {"shards": shards["path"], "data": job["data"]}


def _point(stage: str, series: str, at: int, facts: Point, point: Point) -> Point:
    kept = {name: value for name, value in facts.items() if name not in ("path", "step_seconds")}
    whole = {"stage": stage, "series": series, "at": at, **kept, **point}
    print(json.dumps(whole), file=sys.stderr)
    return whole


@cache
def _block() -> list[str]:
    """The stories that are repeated."""
    return list(islice(stories(1337, 0, BLOCK_DOCUMENTS), BLOCK_DOCUMENTS))


def _write_text(path: Path, size: int, joined: int = 1) -> None:
    """A parquet file of about `size` bytes of text, written a thousand stories at a time."""
    texts = _block()
    schema, written, number = pa.schema([("text", pa.string())]), 0, 0
    with pq.ParquetWriter(path, schema) as writer:
        while written < size:
            start = number % BLOCK_DOCUMENTS
            batch = [f"{t} {number + i}" for i, t in enumerate(texts[start : start + 1000])]
            number += len(batch)
            batch = ["\n".join(batch[i : i + joined]) for i in range(0, len(batch), joined)]
            writer.write_table(pa.table([batch], schema=schema))
            written += sum(map(len, batch))


# ---- one measurement --------------------------------------------------------------------------


def _measure(job: dict[str, Any]) -> tuple[dict[str, Any], Point]:
    """What a fresh process reports of a job, and its seconds and peak memory with its children's.

    The memory is the resident one, in which what processes share counts for each.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, "--job", json.dumps(job)], stdout=subprocess.PIPE, text=True
    )
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            total = 0
            try:
                for each in (parent := psutil.Process(process.pid), *parent.children(True)):
                    total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{job}: ended with code {process.returncode}")
    facts = json.loads(output.splitlines()[-1])
    names = ("seconds", "own_cpu_seconds", "own_peak_bytes")
    return facts, {**{name: facts.pop(name) for name in names}, "peak_bytes": peak}


def _do(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job in this process; its facts, with what it took.

    `own_cpu_seconds` and `own_peak_bytes` are without those of its children: what no further
    process takes over.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    facts = _JOBS[job["stage"]](job, Path(job["root"]))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "own_cpu_seconds": cpu,
        "own_peak_bytes": peak * unit,
        **facts,
    }


def _download(job: dict[str, Any], root: Path) -> dict[str, Any]:
    from slm.source.download import download

    source = download(_config(job), root=root)
    size = sum(split.bytes for split in source.splits.values())
    return {"path": str(source.path), "documents": source.documents, "bytes": size}


def _encode(job: dict[str, Any], root: Path) -> dict[str, Any]:
    from slm.tokens.encode import encode

    source = read_record(Path(job["source"]), Source, verify=False)
    assert source is not None
    shards = encode(_config(job), source, root=root)
    return {
        "path": str(shards.path),
        "tokens": sum(split.tokens for split in shards.splits.values()),
        "dropped": sum(shards.dropped.values()),
    }


def _train(job: dict[str, Any], root: Path) -> dict[str, Any]:
    from slm.training.launch import train

    shards = read_record(Path(job["shards"]), Shards, verify=False)
    assert shards is not None
    shutil.rmtree(root / "runs", ignore_errors=True)  # or a point of two series would be reused
    run = train(_config(job), shards, root=root)
    return {
        "path": str(run.path), "parameters": run.parameters,
        "step_seconds": job["tokens_per_step"] / run.tok_per_sec,
        "tokens_per_step": job["tokens_per_step"], "processes": job.get("processes", 1),
    }  # fmt: skip


def _score(job: dict[str, Any], root: Path) -> dict[str, Any]:
    from slm.evaluation.evaluate import evaluate

    run, shards = _run_of(job), read_record(Path(job["shards"]), Shards, verify=False)
    assert shards is not None
    shutil.rmtree(run.path / "evaluation", ignore_errors=True)
    done = evaluate(_config(job), run, shards)
    return {"documents": done.documents, "tokens": done.tokens, "bytes": done.bytes}


def _sample(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """The seconds of a token: of texts of a single row each."""
    from slm.model.sample import generate
    from slm.model.saved import load_model

    run = _run_of(job)
    model, tokenizer = load_model(run.checkpoint("best"))
    generate(model, tokenizer, ["Once"], max_new_tokens=10)
    samples = [
        generate(model, tokenizer, ["Once"], max_new_tokens=100, seed=seed)[0] for seed in range(4)
    ]
    tokens = sum(sample.tokens + sample.ended for sample in samples)
    return {"token_seconds": sum(sample.seconds for sample in samples) / tokens}


def _run_of(job: dict[str, Any]) -> Run:
    run = read_record(Path(job["run"]), Run, verify=False)
    assert run is not None
    return run


_JOBS = {
    "download": _download, "encode": _encode, "train": _train, "evaluate": _score,
    "sample": _sample,
}  # fmt: skip


def _config(job: dict[str, Any]) -> PipelineConfig:
    """The config of a job. Processes have a thread each, where several are compared."""
    width = job.get("width", 64)
    train: dict[str, Any] = {
        "max_steps": job.get("steps", 1), "tokens_per_step": job.get("tokens_per_step", SEQ_LEN),
        "evaluate_every": 10**6, "checkpoint_every": 10**6,
    }  # fmt: skip
    if "processes" in job:
        rows = job["tokens_per_step"] // SEQ_LEN // LEAVES
        train |= {"processes": job["processes"], "threads": 1, "micro_batches": LEAVES,
                  "micro_batch_size": rows}  # fmt: skip
    model = {"n_embd": width, "n_head": width // 32, "n_layer": SHAPES.get(width, 2)}
    fields: dict[str, Any] = {
        "recipe": "bench",
        "data": job.get("data", {"source": "stories", "documents": 1}),
        "model": {**model, "seq_len": SEQ_LEN},
        "train": train,
    }
    return PipelineConfig.model_validate(fields)


# ---- the costs --------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What is fitted: a value of the points of a stage, by terms that are products of others."""

    stage: str
    series: tuple[str, ...]
    of: str  # seconds, bytes of memory
    terms: tuple[str, ...]


TEXT = ("text", "long documents")
DOWNLOAD = Cost("download", TEXT, "seconds", ("bytes", "documents"))
DOWNLOAD_MEMORY = Cost("download", TEXT, "peak_bytes", ("documents",))
ENCODE = Cost("encode", TEXT, "seconds", ("bytes", "documents"))
ENCODE_ALONE = Cost("encode", TEXT, "own_cpu_seconds", ("bytes", "documents"))
ENCODE_MEMORY = Cost("encode", TEXT, "own_peak_bytes", ("documents",))
NEAR = Cost("encode", ("near-duplicates",), "own_cpu_seconds", ("documents",))
NEAR_MEMORY = Cost("encode", ("near-duplicates",), "own_peak_bytes", ("documents",))
STEP = Cost("train", ("parameters",), "seconds", ("parameters x tokens_per_step", "parameters"))
STEP_MEMORY = Cost("train", ("parameters",), "peak_bytes", ("parameters",))
SCORE = Cost("evaluate", ("documents",), "seconds", ("parameters x tokens", "documents"))
SCORE_MEMORY = Cost("evaluate", ("documents",), "peak_bytes", ("documents",))
TOKEN = Cost("sample", ("parameters",), "token_seconds", ("parameters",))
COSTS = (
    DOWNLOAD, DOWNLOAD_MEMORY, ENCODE, ENCODE_ALONE, ENCODE_MEMORY, NEAR, NEAR_MEMORY, STEP,
    STEP_MEMORY, SCORE, SCORE_MEMORY, TOKEN,
)  # fmt: skip


def value(point: Point, name: str) -> float:
    """A point's value of a term: `a` or `a x b`."""
    return float(np.prod([float(point[part]) for part in name.split(" x ")]))


def fit(cost: Cost, points: Sequence[Point]) -> dict[str, Any]:
    """The coefficients of a cost, the fixed one first, with how far they can be trusted.

    Returns `points`, `coefficients`, `intervals` (95 %, of each), `error` (the largest relative
    one), `exponent` (of the first term, alone, over the points in the upper half of its range),
    `exponent_interval`, `refused` (why nothing is projected by it, or None) and `resampled`: the
    coefficients of every resample.
    """
    of = [p for p in points if p["stage"] == cost.stage and p["series"] in cost.series]
    if cost in (ENCODE, ENCODE_ALONE, ENCODE_MEMORY) and any(p["bytes"] > IN_PROCESS for p in of):
        of = [p for p in of if p["bytes"] > IN_PROCESS]
    empty: dict[str, Any] = {
        "points": len(of), "coefficients": [], "intervals": [], "error": None,
        "exponent": None, "exponent_interval": None,
    }  # fmt: skip
    needed = len(cost.terms) + 4
    if len(of) < needed:
        return {**empty, "refused": f"{len(of)} points of {needed} at least", "resampled": []}
    terms = np.array([[value(p, term) for term in cost.terms] for p in of])  # (N, K)
    y = np.array([float(p[cost.of]) for p in of])
    spread = terms.max(axis=0) / terms.min(axis=0)  # (K,)
    for name, ratio in zip(cost.terms, spread, strict=True):
        if ratio < SPREAD:
            why = f"its {name} differ by a factor of {ratio:.1f}, of {SPREAD:g} at least"
            return {**empty, "refused": why, "resampled": []}
    rng = np.random.default_rng(0)
    coefficients = _least(terms, y)
    curve = coefficients[0] + terms @ coefficients[1:]
    residuals = y / curve - 1
    spare = np.sqrt(len(y) / (len(y) - 1 - len(cost.terms)))  # fitted residuals are too small
    drawn = [curve * (1 + spare * rng.choice(residuals, len(y))) for _ in range(RESAMPLES)]
    resampled = np.array([_least(terms, np.maximum(d, curve / 100)) for d in drawn])
    upper = terms[:, 0] >= np.sqrt(terms[:, 0].min() * terms[:, 0].max())
    exponent, exponents = _slopes(terms[upper, 0], y[upper], [d[upper] for d in drawn])
    error = float(np.abs(residuals).max())
    refused = f"a point is {error:.0%} off the curve" if error > MAX_ERROR else None
    return {
        "points": len(y),
        "coefficients": coefficients.tolist(),
        "intervals": np.quantile(resampled, (0.025, 0.975), axis=0).T.tolist(),
        "error": error,
        "exponent": exponent,
        "exponent_interval": np.quantile(exponents, (0.025, 0.975)).tolist() if exponents else None,
        "refused": refused,
        "resampled": resampled.tolist(),
    }


def _least(terms: Values, y: Values) -> Values:
    """Non-negative coefficients (1 + K,) of least relative error; terms (N, K), y (N,)."""
    rows = np.column_stack([np.ones(len(y)), terms]) / y[:, None]
    scale = np.linalg.norm(rows, axis=0)  # bytes are 10⁹ and the fixed part is 1
    solution: Values = nnls(rows / scale, np.ones(len(y)))[0] / scale
    return solution


def _slopes(x: Values, y: Values, drawn: Sequence[Values]) -> tuple[float | None, list[float]]:
    """The slope of log y by log x, and those of the resampled y; None where x hardly varies."""
    logs = np.log(x)
    if np.ptp(logs) < 0.01:
        return None, []
    slopes = [float(np.polyfit(logs, np.log(np.maximum(v, 1e-12)), 1)[0]) for v in (y, *drawn)]
    return slopes[0], slopes[1:]


# ---- at scale ---------------------------------------------------------------------------------


def at_scale(curves: dict[Cost, dict[str, Any]], points: Sequence[Point]) -> list[dict[str, Any]]:
    """What a billion documents and 64 GPUs cost; rows of `what`, `value`, `low`, `high`, `unit`.

    A row whose cost is not projected has `refused` in place of its value.
    """
    rows: list[dict[str, Any]] = []

    def add(
        what: str, unit: str, amount: float | None, low: float | None = None,
        high: float | None = None, refused: str | None = None,
    ) -> None:  # fmt: skip
        names = {"value": amount, "low": low, "high": high, "refused": refused}
        rows.append({"what": what, "unit": unit, **names})

    def projected(what: str, unit: str, cost: Cost, at: Sequence[float], per: float = 1) -> None:
        curve = curves[cost]
        if curve["refused"]:
            return add(what, unit, None, refused=curve["refused"])
        terms = np.array([1.0, *at])
        low, high = np.quantile(np.array(curve["resampled"]) @ terms, (0.025, 0.975)) / per
        return add(what, unit, float(terms @ curve["coefficients"]) / per, float(low), float(high))

    encoded = [p for p in points if p["stage"] == "encode" and p["series"] == "text"]
    if not encoded:
        return []
    largest = max(encoded, key=lambda p: p["bytes"])
    documents = TARGET["documents"]
    size = documents * largest["bytes"] / largest["documents"]
    tokens = documents * largest["tokens"] / largest["documents"]
    add("text", "TB", size / 1e12)
    add("tokens", "billion", tokens / 1e9)
    add("disk: units, trimmed units, shards", "TB", (3 * 2 * tokens + 2 * 32 * documents) / 1e12)
    add("download, over the network", "h", size / ASSUMED["bytes_per_second_of_a_download"] / 3600)
    projected("download, its own work", "h", DOWNLOAD, (size, documents), 3600)
    projected("download, memory", "GB", DOWNLOAD_MEMORY, (documents,), 1e9)
    read = size / ASSUMED["bytes_per_second_of_the_storage"] / 3600
    add("reading the text once, as each verification does", "h", read)
    projected(f"encode, {available_cores()} cores", "h", ENCODE, (size, documents), 3600)
    projected("encode, what one process does however many there are", "h", ENCODE_ALONE,
              (size, documents), 3600)  # fmt: skip
    projected("encode, memory of that process", "GB", ENCODE_MEMORY, (documents,), 1e9)
    projected("encode, near-duplicates, that process", "h", NEAR, (documents,), 3600)
    projected("encode, near-duplicates, its memory", "TB", NEAR_MEMORY, (documents,), 1e12)
    held_out = documents * TARGET["held_out"]
    projected("evaluate, memory of 1 % held out", "GB", SCORE_MEMORY, (held_out,), 1e9)
    computing, exchanging, hidden = step_seconds()
    steps = tokens / TARGET["tokens_per_step"]
    add("train, steps", "", steps)
    add("train, 64 GPUs, computing", "h", steps * computing / 3600)
    add("train, 64 GPUs, exchanging gradients", "h", steps * exchanging / 3600)
    for where, seen in (("nothing", exchanging), ("the last backward pass", exchanging - hidden)):
        add(f"train, 64 GPUs, share of their time that computes, {where} hiding the exchange", "%",
            100 * computing / (computing + seen))  # fmt: skip
    return rows


def step_seconds(tokens_per_step: float = TARGET["tokens_per_step"]) -> tuple[float, float, float]:
    """Seconds of a step that compute, that exchange, and that do both at most, by what is assumed.

    `elastic` sends each float32 gradient twice, to the process that adds it up and back, while the
    backward pass of the last pass runs: that is two thirds of a pass.
    """
    gpus, speed = TARGET["gpus"], ASSUMED["tokens_per_second_of_a_gpu"]
    each = tokens_per_step / gpus
    sent = 2 * 4 * TARGET["parameters"] * (gpus - 1) / gpus
    exchanging = sent / ASSUMED["bytes_per_second_between_gpus"]
    backward = 2 / 3 * min(each, TARGET["tokens_per_pass"]) / speed
    return each / speed, exchanging, min(exchanging, backward)


# ---- shown ------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The points, the costs and what they come to, as tables."""
    machine = result["machine"]
    lines = [f"{limits.describe(machine)}, {machine['memory_bytes'] / 1e9:.0f} GB of memory", ""]
    columns = ("stage", "series", "bytes", "documents", "tokens", "parameters", "tokens_per_step",
               "processes", "seconds", "token_seconds", "own_cpu_seconds", "peak_bytes",
               "own_peak_bytes")  # fmt: skip
    names = [name for name in columns if any(name in p for p in result["points"])]
    lines += _table(names, [[p.get(name) for name in names] for p in result["points"]])
    rows = []
    for cost in result["costs"]:
        parts = [
            f"{name} {_cell(c)} ({_cell(low)} to {_cell(high)})"
            for name, c, (low, high) in zip(
                _names(cost["terms"]), cost["coefficients"], cost["intervals"], strict=False
            )
        ]
        exponent = None
        if cost["exponent"] is not None:
            low, high = cost["exponent_interval"]
            exponent = f"{cost['exponent']:.2f} ({low:.2f} to {high:.2f})"
        rows.append([cost["stage"], ", ".join(cost["series"]), cost["of"], cost["points"],
                     "; ".join(parts), cost["error"], exponent, cost["refused"]])  # fmt: skip
    lines += _table(
        ("stage", "series", "of", "points", "cost (95 %)", "error", "log-log slope", "refused"),
        rows,
    )
    rows = [
        [n["what"], "" if n["value"] is None else f"{_cell(n['value'])} {n['unit']}".strip(),
         "" if n["low"] is None else f"{_cell(n['low'])} to {_cell(n['high'])}", n["refused"]]
        for n in result["at_scale"]
    ]  # fmt: skip
    lines += _table(("a billion documents", "value", "95 %", "not projected"), rows)
    rows = [[name, number] for name, number in {**result["target"], **result["assumed"]}.items()]
    lines += _table(("target and assumptions", "value"), rows)
    return "\n".join(lines)


def _names(terms: Sequence[str]) -> tuple[str, ...]:
    """Of the coefficients of a cost."""
    return ("fixed", *(f"per {term}" for term in terms))


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    shown = [[_cell(value) for value in row] for row in rows]
    header = [" | ".join(names), " | ".join("---" for _ in names)]
    return [f"| {line} |" for line in (*header, *map(" | ".join, shown))] + [""]


def _cell(number: Any) -> str:
    if isinstance(number, float):
        return f"{number:,.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"
    return "" if number is None else f"{number:,}" if isinstance(number, int) else str(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a few small points, in two minutes")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure that alone")
    parser.add_argument(
        "--points",
        type=lambda text: [int(value) for value in text.split(",")],
        metavar="N,N",
        help="of these parts, those points alone: megabytes, processes or widths",
    )
    parser.add_argument("--write", type=Path, help="folder for scaling.json and scaling.md")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(_do(json.loads(options.job))))
        return
    plan = PLANS["quick" if options.quick else "full"]
    known = {value for name in options.part or PARTS for value in plan[name]}
    if not known.issuperset(options.points or ()):
        parser.error(f"--points are of {', '.join(map(str, sorted(known)))}")
    result = run(options.quick, options.part, options.points, options.write)
    if options.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
