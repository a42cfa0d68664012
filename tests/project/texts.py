"""Documents in every format, written by hand rather than by the project's own code."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "the",
    "cat",
    "dog",
    "ran",
    "sat",
    "on",
    "mat",
    "big",
    "red",
    "house",
    "tree",
    "and",
    "saw",
]


def documents(count: int, seed: int = 1) -> list[str]:
    """Texts of 20 to 60 words, some with characters of several bytes."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) for _ in range(count)]
    return [
        f"{text}, naïve." if number % 7 == 0 else f"{text}." for number, text in enumerate(texts)
    ]


def rows(texts: list[str]) -> list[dict[str, object]]:
    return [{"id": n, "title": text[:6], "body": text} for n, text in enumerate(texts)]


def write(folder: Path, kind: str, texts: list[str]) -> Path:
    """The texts as a file or folder of a format; returns its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"tales.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(texts)))
    elif kind == "json":
        path.write_text(json.dumps(rows(texts)))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ("id", "title", "body"), delimiter=",\t"[kind == "tsv"])
            table.writeheader()
            table.writerows(rows(texts))
    elif kind == "parquet":
        path.write_bytes(parquet(rows(texts)))
    elif kind == "arrow":
        table = pa.Table.from_pylist(rows(texts))
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path = folder / "tales"
        path.mkdir()
        for number, text in enumerate(texts):
            (path / f"{number:03d}.txt").write_text(text)
    return path


def parquet(content: list[dict[str, object]], row_group_size: int = 100) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(content), file, row_group_size=row_group_size)
    return file.getvalue()
