"""Evaluate: a checkpoint and held-out documents → how well it predicts them.

Every document is scored once, whole and in order, in float32, so the figures are the same however
the training was set up: see slm/metrics.py for what is counted.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm import keys, storage
from slm.config import DataConfig, PipelineConfig
from slm.errors import UserError
from slm.evaluation.baselines import compare_references
from slm.evaluation.calibration import Calibration, predictions
from slm.evaluation.duplicates import contamination
from slm.evaluation.intervals import bootstrap_interval
from slm.evaluation.scoring import token_measures
from slm.model.gpt import GPT
from slm.model.saved import load_model
from slm.progress import Progress, automatic, silent
from slm.records import Evaluation, Run, Shards
from slm.run_folder import EVALUATION, RunFolder
from slm.source.documents import read_documents
from slm.storage import run_stage, write_json
from slm.tokens.shards.reading import documents, read_shards
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

EVALUATE_VERSION = 3
DETAILS = "evaluation.json"
CHUNK_DOCUMENTS = 256  # scored between two signs of progress
POSITION_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@storage.hashing_once()
def evaluate(
    config: PipelineConfig, run: Run, shards: Shards, *, progress: Progress = automatic
) -> Evaluation:
    """Scores the run's checkpoint `config.evaluate.checkpoint` on the val split of its shards."""
    home = RunFolder.of(run)
    folder = run.checkpoint(config.evaluate.checkpoint)
    checkpoint = home.checkpoint(folder.name, verify=True)
    assert checkpoint is not None, f"{run.path} names a checkpoint that is not there"
    fields = keys.evaluate_fields(config)
    inputs = {"weights": checkpoint.weights_sha256, "shards": shards.key}
    key = keys.stage_key("evaluate", EVALUATE_VERSION, fields, inputs)

    def build(staging: Path) -> Evaluation:
        verified = read_shards(shards.path)
        found = islice(documents(verified, "val"), config.evaluate.documents)
        total = min(verified.splits["val"].documents, config.evaluate.documents or math.inf)
        model, tokenizer = load_model(folder, device())
        scores = score_documents(model, tokenizer, found, int(total), progress)
        found_out = {
            **details(scores),
            **surroundings(verified, tokenizer, scores.rows(), progress),
        }
        write_json(staging / DETAILS, {"documents": scores.rows(), **found_out})
        return Evaluation(
            key=key,
            run=run.name,
            checkpoint=folder.name,
            weights_sha256=checkpoint.weights_sha256,
            **scores.totals(),
            details=found_out,
        )

    own = config.evaluate == home.config.evaluate
    with storage.reading(shards.path):
        return run_stage(home.result_folder(EVALUATION, key, own=own), Evaluation, key, build)


def evaluate_file(
    folder: Path, path: Path, data: DataConfig, progress: Progress = silent
) -> dict[str, Any]:
    """Scores a checkpoint folder on the documents of any file: the totals of `slm evaluate`.

    Raises UserError where the file is missing, empty or has no documents that can be read.
    """
    if not path.is_file():
        raise UserError(f"--data {path} is not a file: give a .parquet, .jsonl or .txt file")
    model, tokenizer = load_model(folder, device())
    texts = (text.as_py() for array in read_documents(path, data, Counter()) for text in array)
    encoded = (np.array(tokenizer.encode(text)) for text in texts if text)
    scores = score_documents(model, tokenizer, encoded, None, progress)
    if not len(scores):
        raise UserError(f"--data {path} holds no documents: give a file with text in it")
    return scores.totals()


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- scores -----------------------------------------------------------------------------------


class Scores:
    """What a model spends on each of some documents, summed as they come."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, int]] = []
        self._nats = np.zeros(0)  # of all documents, by the place in the document
        self._places = np.zeros(0, np.int64)  # documents that reach so far
        self.calibration = Calibration()

    def add(self, figures: npt.NDArray[np.float32], size: int) -> None:
        """Takes a document's figures, (predictions, 3) as of `calibration.predictions`."""
        nats, confidence, right = figures.T
        self._rows.append((float(nats.sum(dtype=np.float64)), len(nats), size))
        if (more := len(nats) - len(self._nats)) > 0:
            self._nats = np.pad(self._nats, (0, more))
            self._places = np.pad(self._places, (0, more))
        self._nats[: len(nats)] += nats
        self._places[: len(nats)] += 1
        self.calibration.add(confidence, right)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> list[tuple[float, int, int]]:
        """(nats, predictions, bytes) of each document."""
        return self._rows

    def by_position(self) -> list[tuple[int, int, float]]:
        """(first place, last place, mean nats) over ranges of the place in the document, from 1."""
        longest = len(self._nats)
        edges = [edge for edge in POSITION_EDGES if edge <= longest] + [longest + 1]
        return [
            (a, b - 1, float(self._nats[a - 1 : b - 1].sum() / self._places[a - 1 : b - 1].sum()))
            for a, b in pairwise(edges)
        ]

    def totals(self) -> dict[str, Any]:
        """documents, tokens, bytes, val_loss in nats a token, val_bpb in bits a UTF-8 byte."""
        rows = self.rows()
        nats = math.fsum(row[0] for row in rows)
        tokens, size = sum(row[1] for row in rows), sum(row[2] for row in rows)
        return {
            "documents": len(rows),
            "tokens": tokens,
            "bytes": size,
            "val_loss": nats / tokens if tokens else math.nan,
            "val_bpb": nats / math.log(2) / size if size else math.nan,
        }


def score_documents(
    model: GPT,
    tokenizer: Tokenizer,
    texts: Iterable[Ids],
    total: int | None,
    progress: Progress = silent,
) -> Scores:
    """Scores documents a chunk at a time, so memory holds no more than three numbers of each."""
    scores = Scores()
    for chunk in chunks(texts, CHUNK_DOCUMENTS):
        found = token_measures(model, chunk, tokenizer.eot, predictions)
        for document, figures in zip(chunk, found, strict=True):
            scores.add(figures, int(tokenizer.token_bytes[document].sum()))
        progress("documents", len(scores), total)
    return scores


def chunks(items: Iterable[Ids], size: int) -> Iterator[list[Ids]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


# ---- what the report shows of them --------------------------------------------------------------


def details(scores: Scores) -> dict[str, Any]:
    """The interval of val_bpb, the loss by place in the document and by the document's length, the
    extreme documents, and calibration.
    """
    rows = scores.rows()
    bits_per_byte = [nats / math.log(2) / max(1, size) for nats, _, size in rows]
    order = np.argsort(bits_per_byte, kind="stable").tolist()
    return {
        "val_bpb_interval": bootstrap_interval(rows),
        "by_position": scores.by_position(),
        "by_length": by_length(rows),
        "calibration": scores.calibration.summary(),
        "most_likely": [[i, bits_per_byte[i]] for i in order[:3]],
        "least_likely": [[i, bits_per_byte[i]] for i in order[:-4:-1]],
    }


def surroundings(
    shards: Shards,
    tokenizer: Tokenizer,
    rows: Sequence[tuple[float, int, int]],
    progress: Progress = silent,
) -> dict[str, Any]:
    """What the shards themselves tell: others' bits a byte, and duplicates between the splits."""
    progress("what others need for the same bytes", 0, None)
    beside = compare_references(shards, tokenizer, rows)
    progress("duplicates between train and val", 0, None)
    held_out = islice(documents(shards, "val"), len(rows))
    return {"beside": beside, "contamination": contamination(shards, tokenizer, held_out)}


def by_length(rows: Sequence[tuple[float, int, int]]) -> list[tuple[int, int, int, float]]:
    """(fewest tokens, most tokens, documents, bits a byte) over ranges of the length.

    Lengths are in predictions, so a document's tokens and its end-of-text.
    """
    found = []
    for first, after in pairwise((*POSITION_EDGES, math.inf)):
        chosen = [row for row in rows if first <= row[1] < after and row[2]]
        if chosen:
            nats, size = math.fsum(row[0] for row in chosen), sum(row[2] for row in chosen)
            lengths = [row[1] for row in chosen]
            bpb = nats / math.log(2) / size
            found.append((min(lengths), max(lengths), len(chosen), bpb))
    return found
