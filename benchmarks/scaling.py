"""What each stage costs in seconds and memory, against how much there is of what it works on.

Every point is measured in fresh processes, and its data are deleted before the next one: text from
10 MB to 2 GB, models from 0.3 to 30 million parameters, one to four processes. The text is the
generated stories, repeated, each copy made distinct by a number at its end.

Two curves are fitted to each series by least squares of the relative error: affine, with no part
below zero, and a power law, whose exponent is near 1 where the affine one is right. With each comes
its largest relative error. What they say of a billion documents and 64 GPUs follows from the affine
ones by arithmetic; what no machine here can measure is assumed, and listed as such.

`--quick` takes about a minute and shows that it works; its points are too few to conclude from.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import limits
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.optimize import nnls

from slm.config import PipelineConfig, data_root
from slm.machine import available_cores, available_memory
from slm.records import Evaluation, Run, Shards, Source
from slm.source.stories import stories
from slm.storage import make_folder, read_record

Point = dict[str, Any]

BLOCK_DOCUMENTS = 20_000  # that are repeated
SHAPES = {  # of a model: its width → its layers
    64: 2, 128: 4, 256: 5, 384: 6, 512: 9,
}  # fmt: skip
PLANS: dict[str, dict[str, Any]] = {
    "full": {
        "megabytes": (10, 30, 100, 300, 1000, 2000), "fixed_megabytes": 200, "workers": (1, 2, 4),
        "widths": (64, 128, 256, 384, 512), "tokens_per_step": (1024, 2048, 4096, 8192),
        "processes": (1, 2, 4), "evaluated_megabytes": (2, 8, 32), "steps": 12,
        "evaluated_widths": (64, 128, 256),
    },
    "quick": {
        "megabytes": (1, 2, 4), "fixed_megabytes": 4, "workers": (1, 2), "widths": (64, 128),
        "tokens_per_step": (512,), "processes": (1, 2), "evaluated_megabytes": (1,), "steps": 3,
        "evaluated_widths": (64,),
    },
}  # fmt: skip

# What the figures of a billion documents are made for.
TARGET = {"documents": 1e9, "gpus": 64, "parameters": 124e6, "tokens_per_step": 524_288}
ASSUMED = {  # not measured here
    "gpu_flops": 989e12,  # an H100's best in bf16
    "gpu_share": 0.4,  # of it, that trainings of this size reach: nanochat 0.41, OLMo 0.39
    "bytes_per_second": 25e9,  # between machines, per GPU: 200 Gbit/s
    "hub_bytes_per_second": 100e6,  # of a download over a network
    "machine_memory": 256e9,
}


def run(quick: bool = False, folder: Path | None = None) -> dict[str, Any]:
    """Measure; returns `{"machine", "points", "fits", "at_scale", "assumed", "rows"}`.

    Args:
        quick: a few small points, in about a minute.
        folder: where to write `scaling.json` and `scaling.md`; None: nowhere.
    """
    plan = PLANS["quick" if quick else "full"]
    parent = make_folder(data_root() / "benchmarks")
    with tempfile.TemporaryDirectory(dir=parent, prefix="scaling-") as place:
        points = [*_text_points(Path(place), plan), *_model_points(Path(place), plan)]
    fits = _fits(points)
    scale = _at_scale(points, fits)
    rows = [
        limits.row(f"{fit['stage']} by {fit['x']}", f"{fit['y']}, {kind}", value, "", None)
        for fit in fits
        for kind, value in (("per unit", fit["slope"]), ("exponent", fit["exponent"]))
        if value is not None
    ]
    rows += [limits.row("a billion documents", n["what"], n["value"], n["unit"]) for n in scale]
    result = {
        "machine": {**limits.machine(), "memory_bytes": available_memory()},
        "quick": quick,
        "points": points,
        "fits": fits,
        "target": TARGET,
        "assumed": ASSUMED,
        "at_scale": scale,
        "rows": rows,
    }
    if folder:
        make_folder(folder)
        (folder / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "scaling.md").write_text(markdown(result))
    return result


# ---- the points -------------------------------------------------------------------------------


def _text_points(place: Path, plan: dict[str, Any]) -> Iterator[Point]:
    """Download and encode, of more and more text; then encode by more and more processes."""
    for megabytes in plan["megabytes"]:
        yield from _download_and_encode(place, megabytes, [available_cores()])
    workers = [count for count in plan["workers"] if count <= 2 * available_cores()]
    yield from _download_and_encode(place, plan["fixed_megabytes"], workers, series="processes")


def _download_and_encode(
    place: Path, megabytes: float, workers: Sequence[int], series: str = "text"
) -> Iterator[Point]:
    root = make_folder(place / "text")
    text = root / "text.parquet"
    _write_text(text, int(megabytes * 1e6))
    job: dict[str, Any] = {"root": str(root), "data": {"source": "files", "path": str(text)}}
    facts, point = _measure({"stage": "download", **job})
    source = facts.pop("path")
    text.unlink()
    if series == "text":
        yield _point("download", "text", point, facts)
    for count in workers:
        shutil.rmtree(root / "shards", ignore_errors=True)
        data = {**job["data"], "workers": count}
        shards, point = _measure({"stage": "encode", **job, "data": data, "source": source})
        shards.pop("path")
        yield _point("encode", series, point, {**facts, **shards, "processes": count})
    shutil.rmtree(root)


def _model_points(place: Path, plan: dict[str, Any]) -> Iterator[Point]:
    """Training, by parameters, tokens per step and processes; evaluation, by model and by text."""
    root = make_folder(place / "models")
    tokens = plan["tokens_per_step"][len(plan["tokens_per_step"]) // 2]
    width = plan["widths"][len(plan["widths"]) // 2]
    first, *others = plan["evaluated_megabytes"]
    with_data = _shards(root, first)
    job = {"stage": "train", "root": str(root), "steps": plan["steps"], **with_data}
    for each in plan["widths"]:
        run, point = _measure({**job, "width": each, "tokens_per_step": tokens})
        yield _point("train", "parameters", {**point, **_step(run)}, run)
        if each in plan["evaluated_widths"]:
            yield from _evaluated(root, run, with_data, "parameters")
    for each in plan["tokens_per_step"]:
        run, point = _measure({**job, "width": width, "tokens_per_step": each})
        yield _point("train", "tokens", {**point, **_step(run)}, run)
    most = max(plan["processes"])
    for each in plan["processes"]:  # the same batch and micro-batches of everybody
        shared = {"processes": each, "rows": max(1, tokens // 128 // most)}
        run, point = _measure({**job, **shared, "width": width, "tokens_per_step": tokens})
        yield _point("train", "processes", {**point, **_step(run)}, run)
    smallest, _ = _measure({**job, "width": plan["widths"][0], "tokens_per_step": tokens})
    for megabytes in others:
        yield from _evaluated(root, smallest, _shards(root, megabytes), "text")
    shutil.rmtree(root)


def _step(run: dict[str, Any]) -> dict[str, float]:
    """A step's seconds in place of those of the whole training."""
    return {"seconds": run["tokens_per_step"] / run["tok_per_sec"]}


def _evaluated(root: Path, run: Point, data: Point, series: str) -> Iterator[Point]:
    job = {"stage": "evaluate", "root": str(root), "run": run["path"], "shards": data["shards"]}
    evaluation, point = _measure(job)
    yield _point("evaluate", series, point, {**evaluation, "parameters": run["parameters"]})


def _shards(root: Path, megabytes: float) -> Point:
    """Shards of so much text, for a model of a small vocabulary."""
    text = root / f"{megabytes}.parquet"
    _write_text(text, int(megabytes * 1e6))
    job: dict[str, Any] = {
        "root": str(root),
        "data": {"source": "files", "path": str(text), "vocab_size": 4096, "val_fraction": 0.1},
    }
    source, _ = _measure({"stage": "download", **job})
    shards, _ = _measure({"stage": "encode", **job, "source": source["path"]})
    return {"shards": shards["path"], "data": job["data"]}


def _point(stage: str, series: str, point: Point, facts: Point) -> Point:
    kept = {name: value for name, value in facts.items() if name not in ("path", "shards")}
    print(f"{stage} by {series}: {kept} {point}", file=sys.stderr)
    return {"stage": stage, "series": series, **kept, **point}


@cache
def _block() -> tuple[list[str], int]:
    """The stories that are repeated, and their bytes."""
    texts = list(islice(stories(1337, 0, BLOCK_DOCUMENTS), BLOCK_DOCUMENTS))
    return texts, sum(len(text.encode()) for text in texts)


def _write_text(path: Path, size: int) -> None:
    """A parquet file of about `size` bytes of text, written a thousand documents at a time."""
    texts, _ = _block()
    schema, written, number = pa.schema([("text", pa.string())]), 0, 0
    with pq.ParquetWriter(path, schema) as writer:
        while written < size:
            start = number % BLOCK_DOCUMENTS
            batch = [f"{t} {number + i}" for i, t in enumerate(texts[start : start + 1000])]
            writer.write_table(pa.table([batch], schema=schema))
            number += len(batch)
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
    return facts, {"seconds": facts.pop("seconds"), "peak_bytes": peak}


def _do(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job in this process; its facts, with the seconds of its own work."""
    begin = time.perf_counter()
    facts = _JOBS[job["stage"]](job, Path(job["root"]))
    return {"seconds": time.perf_counter() - begin, **facts}


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
    tokens = sum(split.tokens for split in shards.splits.values())
    return {"path": str(shards.path), "tokens": tokens}


def _train(job: dict[str, Any], root: Path) -> dict[str, Any]:
    from slm.training.launch import train

    shards = read_record(Path(job["shards"]), Shards, verify=False)
    assert shards is not None
    shutil.rmtree(root / "runs", ignore_errors=True)  # or a point of two series would be reused
    run = train(_config(job), shards, root=root)
    return {
        "path": str(run.path), "parameters": run.parameters, "tok_per_sec": run.tok_per_sec,
        "tokens_per_step": job["tokens_per_step"], "processes": job.get("processes", 1),
    }  # fmt: skip


def _evaluate(job: dict[str, Any], root: Path) -> dict[str, Any]:
    from slm.evaluation.evaluate import evaluate

    run = read_record(Path(job["run"]), Run, verify=False)
    shards = read_record(Path(job["shards"]), Shards, verify=False)
    assert run is not None
    assert shards is not None
    shutil.rmtree(run.path / "evaluation", ignore_errors=True)
    done: Evaluation = evaluate(_config(job), run, shards)
    return {
        "documents": done.documents, "tokens": done.tokens, "bytes": done.bytes,
        "train_tokens": shards.splits["train"].tokens,
    }  # fmt: skip


_JOBS = {"download": _download, "encode": _encode, "train": _train, "evaluate": _evaluate}


def _config(job: dict[str, Any]) -> PipelineConfig:
    """The config of a job. Processes have a thread each, where several are compared."""
    width = job.get("width", 64)
    train: dict[str, Any] = {
        "max_steps": job.get("steps", 1), "tokens_per_step": job.get("tokens_per_step", 128),
        "evaluate_every": 10**6, "checkpoint_every": 10**6,
    }  # fmt: skip
    if "processes" in job:
        train |= {"processes": job["processes"], "threads": 1, "micro_batch_size": job["rows"]}
    fields: dict[str, Any] = {
        "recipe": "bench",
        "data": job.get("data", {"source": "stories", "documents": 1}),
        "model": {"n_embd": width, "n_head": width // 32, "n_layer": SHAPES[width], "seq_len": 128},
        "train": train,
    }
    return PipelineConfig.model_validate(fields)


# ---- the fits ---------------------------------------------------------------------------------

# Series: its stage, its name, what is plotted against what.
SERIES = (
    ("download", "text", "bytes", "seconds"),
    ("download", "text", "documents", "peak_bytes"),
    ("encode", "text", "bytes", "seconds"),
    ("encode", "text", "documents", "peak_bytes"),
    ("encode", "processes", "1 / processes", "seconds"),
    ("train", "parameters", "parameters x tokens_per_step", "seconds"),
    ("train", "parameters", "parameters", "peak_bytes"),
    ("train", "tokens", "tokens_per_step", "seconds"),
    ("train", "processes", "1 / processes", "seconds"),
    ("train", "processes", "processes", "peak_bytes"),
    ("evaluate", "parameters", "parameters x tokens", "seconds"),
    ("evaluate", "text", "documents", "seconds"),
    ("evaluate", "text", "documents", "peak_bytes"),
)


def _fits(points: list[Point]) -> list[dict[str, Any]]:
    """The two curves of every series that has points enough."""
    fits = []
    for stage, series, x, y in SERIES:
        of = [p for p in points if p["stage"] == stage and p["series"] == series]
        if (stage, series) == ("evaluate", "text"):  # the smallest text is of the other series
            shared = [p for p in points if p["stage"] == stage and p["series"] == "parameters"]
            of = [*shared[:1], *of]
        if len(of) >= 2:
            xs, ys = [_value(p, x) for p in of], [float(p[y]) for p in of]
            fits.append({"stage": stage, "series": series, "x": x, "y": y, **fit(xs, ys)})
    return fits


def _value(point: Point, name: str) -> float:
    """A point's value on the axis of that name: `a`, `1 / a` or `a x b`."""
    if name.startswith("1 / "):
        return 1 / float(point[name.removeprefix("1 / ")])
    return float(np.prod([float(point[part]) for part in name.split(" x ")]))


def fit(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float | None]:
    """`intercept + slope · x` and `factor · x ** exponent`, each with its largest relative error.

    The error is relative since a series covers orders of magnitude: of 1 s and of 1,000 s a tenth
    is the same miss. No part of a cost is below zero.
    """
    x, y = np.array(xs), np.array(ys)
    (intercept, slope), _ = nnls(np.stack([1 / y, x / y], axis=1), np.ones(len(y)))
    exponent, factor = np.polyfit(np.log(x), np.log(y), 1)
    power = np.exp(factor) * x**exponent
    return {
        "points": len(y),
        "intercept": float(intercept),
        "slope": float(slope),
        "error": float(np.max(np.abs((intercept + slope * x) / y - 1))),
        "factor": float(np.exp(factor)),
        "exponent": float(exponent),
        "power_error": float(np.max(np.abs(power / y - 1))),
    }


# ---- at scale ---------------------------------------------------------------------------------


def _at_scale(points: list[Point], fits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a billion documents and 64 GPUs cost by the affine fits and by what is assumed."""
    by = {(f["stage"], f["series"], f["x"], f["y"]): f for f in fits}

    def cost(stage: str, series: str, x: str, y: str, at: float) -> float:
        curve = by[stage, series, x, y]
        return float(curve["intercept"] + curve["slope"] * at)

    largest = max((p for p in points if p["stage"] == "encode"), key=lambda p: p["bytes"])
    documents = TARGET["documents"]
    size = documents * largest["bytes"] / largest["documents"]
    tokens = documents * largest["tokens"] / largest["documents"]
    one = cost("encode", "text", "bytes", "seconds", size)
    shares = by["encode", "processes", "1 / processes", "seconds"]
    whole = shares["intercept"] + shares["slope"]  # of one process
    by_workers = whole / (shares["intercept"] + shares["slope"] / available_cores())
    serial = one * by_workers * shares["intercept"] / whole
    steps = tokens / TARGET["tokens_per_step"]
    flops = 6 * TARGET["parameters"] * tokens
    computing = flops / (TARGET["gpus"] * ASSUMED["gpu_flops"] * ASSUMED["gpu_share"])
    exchange = steps * 2 * 4 * TARGET["parameters"] / ASSUMED["bytes_per_second"]
    memory = {
        stage: cost(stage, "text", "documents", "peak_bytes", documents) / 1e9
        for stage in ("download", "encode")
    }
    room = by["encode", "text", "documents", "peak_bytes"]
    most = (ASSUMED["machine_memory"] - room["intercept"]) / max(room["slope"], 1e-9)
    on_disk = size + 2 * (2 * tokens) + 32 * documents  # units have four numbers per document
    rows = [
        ("text", size / 1e9, "GB"),
        ("tokens", tokens / 1e9, "billion"),
        ("download, over the network", size / ASSUMED["hub_bytes_per_second"] / 3600, "h"),
        ("download, its own work", cost("download", "text", "bytes", "seconds", size) / 3600, "h"),
        ("download, memory", memory["download"], "GB"),
        (f"encode, {available_cores()} processes", one / 3600, "h"),
        ("encode, 64 workers", (serial + (one * by_workers - serial) / 64) / 3600, "h"),
        ("encode, any number of workers", serial / 3600, "h"),
        ("encode, memory of its processes", memory["encode"], "GB"),
        ("encode, documents that fill the assumed memory", most / 1e9, "billion"),
        ("encode, disk: text, units, shards", on_disk / 1e9, "GB"),
        ("train, 64 GPUs, computing", computing / 3600, "h"),
        ("train, 64 GPUs, gradients if not overlapped", exchange / 3600, "h"),
        ("train, steps", steps, ""),
    ]  # fmt: skip
    if ("evaluate", "text", "documents", "seconds") in by:
        held_out = documents / 100
        seconds = cost("evaluate", "text", "documents", "seconds", held_out)
        peak = cost("evaluate", "text", "documents", "peak_bytes", held_out)
        rows.append(("evaluate, a hundredth held out, smallest model", seconds / 3600, "h"))
        rows.append(("evaluate, memory", peak / 1e9, "GB"))
    return [{"what": name, "value": value, "unit": unit} for name, value, unit in rows]


# ---- shown ------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The points, the fits and what they say, as three tables."""
    machine = result["machine"]
    lines = [f"{limits.describe(machine)}, {machine['memory_bytes'] / 1e9:.0f} GB of memory", ""]
    columns = ("stage", "series", "bytes", "documents", "tokens", "parameters", "tokens_per_step",
               "processes", "seconds", "peak_bytes")  # fmt: skip
    lines += _table(columns, [[p.get(name) for name in columns] for p in result["points"]])
    names = ("stage", "x", "y", "points", "intercept", "slope", "error", "exponent", "power_error")
    lines += _table(names, [[each[name] for name in names] for each in result["fits"]])
    rows = [[each["what"], each["value"], each["unit"]] for each in result["at_scale"]]
    lines += _table(("a billion documents", "value", "unit"), rows)
    rows = [[name, value] for name, value in {**result["target"], **result["assumed"]}.items()]
    lines += _table(("target and assumptions", "value"), rows)
    return "\n".join(lines)


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    shown = [[_cell(value) for value in row] for row in rows]
    header = [" | ".join(names), " | ".join("---" for _ in names)]
    return [f"| {line} |" for line in (*header, *map(" | ".join, shown))] + [""]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a few small points, in a minute")
    parser.add_argument("--write", type=Path, help="folder for scaling.json and scaling.md")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(_do(json.loads(options.job))))
        return
    result = run(options.quick, options.write)
    if options.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
