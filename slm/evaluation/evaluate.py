"""Evaluate: a checkpoint and held-out documents → how well it predicts them.

Every document is scored once, whole and in order, in float32, so the figures are the same however
the training was set up: see slm/evaluation/scoring.py for what is counted.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm import keys, storage
from slm.config import DataConfig, PipelineConfig
from slm.errors import CorruptionError, SlmError, UserError
from slm.evaluation.baselines import compare_baselines
from slm.evaluation.calibration import Calibration, predictions
from slm.evaluation.duplicates import contamination
from slm.evaluation.identity import DETAILS, evaluate_key, evaluation_folder
from slm.evaluation.intervals import RESAMPLES, paired_interval
from slm.evaluation.scoring import (
    MAX_LOSS,
    DocumentScore,
    Score,
    bits_per_byte,
    token_measures,
)
from slm.evaluation.sources import by_source, held_out_sources, source_figures
from slm.machine import pick_device
from slm.model.gpt import GPT
from slm.model.saved import load_model
from slm.progress import Progress, automatic, silent
from slm.records import Evaluation, Run, Shards, check_input
from slm.run_folder import RunFolder, run_of_checkpoint
from slm.source.documents import FORMATS, format_of, read_documents
from slm.storage import run_stage, write_json
from slm.tokens.shards.reading import documents, read_shards
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

SAME_SUM = 1e-9  # relative, of sums of the same scores
CHUNK_DOCUMENTS = 256  # scored between two progress reports
MOST_REMEMBERED = 8  # shards, of what they show without a model
POSITION_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@storage.hashing_once()
def evaluate(
    config: PipelineConfig, run: Run, shards: Shards, *, progress: Progress = automatic
) -> Evaluation:
    """Score the run's checkpoint `config.evaluate.checkpoint` on the val split of its shards."""
    check_input(run, Run)
    check_input(shards, Shards)
    home = RunFolder.of(run)
    folder = run.checkpoint(config.evaluate.checkpoint)
    checkpoint = home.checkpoint(folder.name, verify=True)
    assert checkpoint is not None, f"{run.path} names a checkpoint that is not there"
    key = evaluate_key(config, checkpoint.weights_sha256, shards.key)

    def build(staging: Path) -> Evaluation:
        verified = read_shards(shards.path)
        held_out = islice(documents(verified, "val"), config.evaluate.documents)
        total = min(verified.splits["val"].documents, config.evaluate.documents or math.inf)
        model, tokenizer = load_model(folder, scoring_device(config))
        scored = score_documents(model, tokenizer, held_out, int(total), progress)
        details = {
            **score_details(scored),
            **data_context(verified, tokenizer, scored.rows, progress),
        }
        documents_of: dict[str, Any] = {"documents": scored.rows}
        if verified.parts:
            sources = held_out_sources(verified, len(scored.rows))
            details["sources"] = source_figures(scored.rows, sources)
            documents_of["document_sources"] = sources
        write_json(staging / DETAILS, {**documents_of, **details})
        return Evaluation(
            key=key,
            run=run.name,
            checkpoint=folder.name,
            weights_sha256=checkpoint.weights_sha256,
            **scored.totals(),
            details=details,
        )

    with storage.reading(shards.path):
        result = run_stage(
            evaluation_folder(config, run, key),
            Evaluation,
            key,
            build,
            keys.made("evaluate", config),
        )
    if result.reused:
        check_figures(result)
    return result


def check_figures(evaluation: Evaluation) -> None:
    """Raises CorruptionError where a record contradicts the scores of its documents.

    Its files are as recorded then, and so is its own hash: someone wrote it anew.
    """
    details = json.loads((evaluation.path / DETAILS).read_bytes())
    rows = [DocumentScore(*row) for row in details.pop("documents")]
    groups = {"": (rows, evaluation.model_dump())}
    recorded = evaluation.details.get("sources", {})
    sources = details.pop("document_sources", None)
    for source, of_source in (by_source(rows, sources) if sources else {}).items():
        groups[f"{source}: "] = (of_source, recorded.get(source, {}))
    wrong = [
        f"{group}{name} is {figure}, its {len(scores)} documents give {total}"
        for group, (scores, figures) in groups.items()
        for name, total in Score.total(scores).figures().items()
        if not math.isclose(total, figure := figures.get(name, math.inf), rel_tol=SAME_SUM)
        and not (math.isnan(total) and math.isnan(figure))
    ]
    if storage.canonical_json(details) != storage.canonical_json(evaluation.details):
        wrong.append(f"details are not those of {DETAILS}")
    if wrong:
        folder = evaluation.path
        raise CorruptionError(
            f"{folder / storage.RECORD} contradicts its own scores: {'; '.join(wrong)}. It is not "
            f"what slm wrote: delete {folder} and `slm evaluate {evaluation.run}` again"
        )


def evaluate_file(
    folder: Path,
    path: Path,
    data: DataConfig,
    progress: Progress = silent,
    *,
    column: str | None = None,
) -> dict[str, Any]:
    """Score a checkpoint folder on the documents of any file: the totals of `slm evaluate`.

    Args:
        data: how the run's own files are read; the name of the file gives its format, where it
            does.
        column: of the text; None: as in `data`.

    Raises UserError where the file is missing, empty or has no documents that can be read.
    """
    if not path.is_file():
        raise UserError(f"--data {path} is not a file: give one of {', '.join(FORMATS)}")
    if column is not None:
        data = data.model_copy(update={"text_column": column, "template": None})
    data = data.model_copy(update={"columns": ()})  # which another file need not have
    if format_of(path):
        data = data.model_copy(update={"format": None})
    model, tokenizer = load_model(folder, device_of(folder))
    texts = _texts(path, data)
    encoded = (np.array(tokenizer.encode(text)) for text in texts if text)
    scored = score_documents(model, tokenizer, encoded, None, progress)
    if not scored.rows:
        raise UserError(f"--data {path} holds no documents: give a file with text in it")
    return scored.totals()


# How a source's errors name the setting of a column, with an example or without.
_SETTING = r"set data\.(?:text_column|template)"
_NESTED = _SETTING + r", such as (?:data\.text_column=|\{)([^ }]+)(?:\} in it)?"


def _texts(path: Path, data: DataConfig) -> Iterator[str]:
    try:
        for array in read_documents(path, data, Counter()):
            yield from array.to_pylist()
    except UserError as error:  # it is a command's option here, no setting
        advice = re.sub(_NESTED, r"--column \1", str(error))
        raise UserError(re.sub(_SETTING, "--column NAME", advice)) from error


def scoring_device(config: PipelineConfig | None) -> str:
    """The device that `train.device` allows; None: of a model whose run is not here."""
    on_cpu = config is not None and config.train.device == "cpu"
    return str(pick_device("cpu" if on_cpu else "auto"))


def device_of(checkpoint: Path) -> str:
    """`scoring_device` by the config of the run that a checkpoint's folder is in."""
    run = run_of_checkpoint(checkpoint)
    config = None
    if run is not None and run.exists:
        with suppress(CorruptionError):  # its weights are whole, or load_model refuses them
            config = run.config
    return scoring_device(config)


# ---- scores -----------------------------------------------------------------------------------


class ScoredDocuments:
    """What a model spends on each of some documents, summed as they come."""

    def __init__(self) -> None:
        self.rows: list[DocumentScore] = []
        self.calibration = Calibration()
        self._nats = np.zeros(0)  # over all documents, by the position in the document
        self._reached = np.zeros(0, np.int64)  # documents that have that position

    def add(self, figures: npt.NDArray[np.float32], size: int) -> None:
        """Add a document of `size` bytes by its figures, (tokens, 3) as of `predictions`.

        Raises SlmError where the model has diverged: a figure is not finite, or the loss is beyond
        `MAX_LOSS`.
        """
        nats, confidence, correct = figures.T
        if not np.isfinite(figures).all() or nats.mean(dtype=np.float64) > MAX_LOSS:
            raise SlmError(
                f"the model gives held-out document {len(self.rows) + 1} a loss of "
                f"{nats.mean(dtype=np.float64):.4g} nats per token, since its training diverged: "
                "train again with a lower train.learning_rate"
            )
        self.rows.append(DocumentScore(float(nats.sum(dtype=np.float64)), len(nats), size))
        if (more := len(nats) - len(self._nats)) > 0:
            self._nats = np.pad(self._nats, (0, more))
            self._reached = np.pad(self._reached, (0, more))
        self._nats[: len(nats)] += nats
        self._reached[: len(nats)] += 1
        self.calibration.add(confidence, correct)

    def by_position(self) -> list[tuple[int, int, float]]:
        """(first, last, mean nats) over ranges of the position in the document, from 1."""
        length = len(self._nats)
        edges = [edge for edge in POSITION_EDGES if edge <= length] + [length + 1]
        return [
            (a, b - 1, float(self._nats[a - 1 : b - 1].sum() / self._reached[a - 1 : b - 1].sum()))
            for a, b in pairwise(edges)
        ]

    def totals(self) -> dict[str, Any]:
        """documents, tokens, bytes, val_loss in nats per token, val_bpb in bits per UTF-8 byte."""
        return Score.total(self.rows).figures()


def score_documents(
    model: GPT,
    tokenizer: Tokenizer,
    texts: Iterable[Ids],
    total: int | None,
    progress: Progress = silent,
) -> ScoredDocuments:
    """Score documents a chunk at a time, so memory holds no more than three numbers of each."""
    scored, remaining = ScoredDocuments(), iter(texts)
    for chunk in iter(lambda: list(islice(remaining, CHUNK_DOCUMENTS)), []):
        measured = token_measures(model, chunk, tokenizer.eot, predictions)
        for document, figures in zip(chunk, measured, strict=True):
            scored.add(figures, tokenizer.count_bytes(document))
        progress("documents", len(scored.rows), total)
    return scored


# ---- details, for the report ------------------------------------------------------------------


def score_details(scored: ScoredDocuments) -> dict[str, Any]:
    """The interval of val_bpb, the loss by position in the document and by the document's length,
    the documents of the highest and lowest loss, and calibration.
    """
    rows = scored.rows
    nats = np.array([row.nats for row in rows])
    sizes = np.array([row.bytes for row in rows])
    interval = paired_interval(nats, np.zeros(len(rows)), sizes, resamples=RESAMPLES)
    bpb = [bits_per_byte(row.nats, max(1, row.bytes)) for row in rows]
    order = np.argsort(bpb, kind="stable").tolist()
    return {
        "val_bpb_interval": interval[1:],
        "by_position": scored.by_position(),
        "by_length": by_length(rows),
        "calibration": scored.calibration.summary(),
        "most_likely": [[i, bpb[i]] for i in order[:3]],
        "least_likely": [[i, bpb[i]] for i in order[:-4:-1]],
    }


def data_context(
    shards: Shards,
    tokenizer: Tokenizer,
    rows: Sequence[DocumentScore],
    progress: Progress = silent,
) -> dict[str, Any]:
    """What the data show: the bits per byte of baselines, and duplicates between splits.

    Of the model that `rows` are of, it has what it spent on the documents of the baselines.
    """
    asked = storage.content_hash(shards), len(rows)
    known = _shown_by_data.get(asked)
    if known is None:
        progress("baselines on the same bytes", 0, None)
        baselines = compare_baselines(shards, tokenizer, len(rows))
        progress("duplicates between train and val", 0, None)
        held_out = islice(documents(shards, "val"), len(rows))
        duplicates = contamination(shards, tokenizer, held_out)
        known = {"beside": baselines, "contamination": duplicates}
        if len(_shown_by_data) >= MOST_REMEMBERED:
            _shown_by_data.clear()
        _shown_by_data[asked] = known
    context = deepcopy(known)
    compared = rows[: context["beside"]["documents"]]
    context["beside"]["val_bpb"] = Score.total(compared).val_bpb
    return context


# By the content of the shards and the number of documents: what they show is the same for every
# model, and the trials of a sweep ask for it one after the other.
_shown_by_data: dict[tuple[str, int], dict[str, Any]] = {}


def by_length(rows: Sequence[DocumentScore]) -> list[tuple[int, int, int, float]]:
    """(fewest tokens, most tokens, documents, bits per byte) over ranges of the length.

    Lengths are in predictions, so a document's tokens and its end-of-text.
    """
    ranges = []
    for first, after in pairwise((*POSITION_EDGES, math.inf)):
        chosen = [row for row in rows if first <= row.tokens < after and row.bytes]
        if chosen:
            lengths = [row.tokens for row in chosen]
            bpb = Score.total(chosen).val_bpb
            ranges.append((min(lengths), max(lengths), len(chosen), bpb))
    return ranges
