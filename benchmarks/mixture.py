"""What a mixture costs in seconds and memory, against how much text there is.

Two sources of generated stories, each copy of a story made distinct by a number; a tenth of the
second is in the first, and both have a filter of the user's own and a minimal length. Every size is
measured in a fresh process: download, encode and mix, with the peak of the process that does it and
of its largest worker. Memory that follows the text shows as a difference between the sizes.

    python benchmarks/mixture.py --sizes 10,100,300 --folder FOLDER
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import slm
from slm.source.stories import stories

BLOCK = 20_000  # stories that are repeated
FILTER = "def keep(text):\n    return 'xylophone' not in text\n"


def texts(megabytes: float, first: int) -> Iterator[str]:
    """Stories of so much text, numbered from `first` on."""
    block, size, number = list(islice(stories(1, 0, BLOCK), BLOCK)), 0.0, first
    while size < megabytes * 1e6:
        text = f"{block[number % BLOCK]} {number}"
        size += len(text)
        number += 1
        yield text


def write(path: Path, documents: Iterator[str]) -> None:
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(documents, 2000)):
            writer.write_table(pa.table({"text": batch}, schema=schema))


def measure(megabytes: float, folder: Path) -> dict[str, float]:
    """Seconds and peaks of one size, in this process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("own.py").write_text(FILTER)
    half = megabytes / 2
    write(Path("a.parquet"), texts(half, 0))
    shared = half / 10
    write(
        Path("b.parquet"),
        (t for part in (texts(shared, 0), texts(half - shared, 10**7)) for t in part),
    )
    source = "{source: files, path: %s.parquet, clean: {filter: own.py:keep, min_chars: 20}}"
    Path("pipelines.yaml").write_text(
        f"recipes: {{mixed: {{data: {{sources: {{a: {source % 'a'}, b: {source % 'b'}}}}}, "
        "train: {max_steps: 1}}}"
    )
    config = slm.load_recipe("mixed")
    root, silent = folder / "data", lambda *_: None
    row: dict[str, float] = {"megabytes": megabytes}
    begin = time.monotonic()
    source_of_all = slm.download(config, root=root, progress=silent)
    row["download_s"] = time.monotonic() - begin
    begin = time.monotonic()
    parts = {
        name: slm.encode_part(config, source_of_all, name, root=root, progress=silent)
        for name in config.data.sources
    }
    row["encode_s"] = time.monotonic() - begin
    row["before_mix_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.monotonic()
    shards = slm.mix(config, source_of_all, parts, root=root, progress=silent)
    row["mix_s"] = time.monotonic() - begin
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row["worker_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    row["documents"] = shards.splits["train"].documents
    row["excluded"] = sum(sum(part.excluded.values()) for part in shards.parts.values())
    return {name: round(value, 2) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10,100,300", help="megabytes of text")
    parser.add_argument("--folder", type=Path, required=True, help="is emptied; for the data")
    parser.add_argument("--one", type=float, help="measure this size, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.folder.resolve())))
        return
    for size in given.sizes.split(","):
        command = [sys.executable, __file__, "--folder", str(given.folder), "--one", size]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")
    shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
