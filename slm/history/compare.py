"""Two runs compared: what was set otherwise, how each learned, how well each predicts.

The difference in bits per byte comes with the gate's own interval, a paired bootstrap over
documents. It is given only where both were scored on the same documents. Any number of runs is
compared by `slm.comparison`.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from slm.config import PipelineConfig
from slm.evaluation.identity import DETAILS
from slm.evaluation.intervals import paired_interval
from slm.keys import with_sources
from slm.records import Benchmarks, Evaluation, Frozen, Run, TaskDifference, TaskScore
from slm.run_folder import REPORT, RunFolder

Curve = list[tuple[int, float]]  # (tokens trained on, val_bpb on the fixed slice)
FIGURES = (  # of a run
    "step", "tokens", "parameters", "train_loss", "val_loss", "val_bpb", "tok_per_sec", "seconds",
)  # fmt: skip
MAX_ROWS = 8  # of a table of two curves


class Interval(Frozen):
    """The difference in bits per byte, second minus first, with its 95 % interval."""

    difference: float
    low: float
    high: float
    documents: int

    @property
    def better(self) -> bool | None:
        """Whether B is better, which needs fewer bits; None where that is not shown."""
        return None if self.low <= 0 <= self.high else self.high < 0

    @property
    def figures(self) -> str:
        return (
            f"{self.difference:+.4f} bits per byte (95 %: {self.low:+.4f} to {self.high:+.4f}) on "
            f"the same {self.documents:,} documents"
        )

    @property
    def sentence(self) -> str:
        """Which of the two is better, as far as the interval shows."""
        result = {True: "B is better", False: "A is better", None: "no difference is shown"}
        return f"{result[self.better]}: {self.figures}"


class SamplePair(Frozen):
    """What both wrote after a prompt, with the same settings."""

    prompt: str
    temperature: float
    top_k: int
    a: str
    b: str


class PairComparison(Frozen):
    """Two runs, A and B."""

    a: str
    b: str
    config: dict[str, tuple[Any, Any]]  # dotted key → both values, where they differ
    figures: dict[str, tuple[float | None, float | None]]
    curves: tuple[Curve, Curve]
    at_equal_tokens: list[tuple[int, float, float]]  # tokens, val_bpb of A, of B
    interval: Interval | None
    no_interval: str | None  # why there is none
    sources: dict[str, Interval] = Field(default_factory=dict)  # of a mixture: the same of each
    benchmarks: list[TaskDifference]  # of the tasks that both were scored on: A, B
    not_compared: dict[str, str]  # task → why there is no difference
    samples: list[SamplePair]

    @model_serializer(mode="wrap")
    def _without_empty_sources(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is printed of runs on one source is what always was."""
        printed: dict[str, Any] = fields(self)
        if not self.sources:
            printed.pop("sources", None)
        return printed


def compare_pair(a: RunFolder, b: RunFolder) -> PairComparison:
    """Two runs compared; either may be unfinished, and then lacks figures.

    Raises CorruptionError where a folder holds no run.
    """
    runs = (a.record, b.record)
    evaluations = (a.evaluation, b.evaluation)
    curves = (_curve(a), _curve(b))
    interval, sources, reason = _intervals((a, b), evaluations)
    benchmarks, not_compared = _benchmarks(a, b)
    scored = evaluations if all(evaluations) else runs  # of both the same: one measure
    return PairComparison(
        a=a.name,
        b=b.name,
        config=config_differences(a.config, b.config),
        figures={
            name: (_figure(name, runs[0], scored[0]), _figure(name, runs[1], scored[1]))
            for name in FIGURES
        },
        curves=curves,
        at_equal_tokens=at_equal_tokens(*curves),
        interval=interval,
        no_interval=reason,
        sources=sources,
        benchmarks=benchmarks,
        not_compared=not_compared,
        samples=_samples(a, b),
    )


# ---- settings and figures ---------------------------------------------------------------------


def config_differences(a: PipelineConfig, b: PipelineConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, and both values; of a source that one alone has, None."""
    ours, theirs = with_sources(a.flat()), with_sources(b.flat())
    both = ((key, ours.get(key), theirs.get(key)) for key in dict.fromkeys((*ours, *theirs)))
    return {key: (first, second) for key, first, second in both if first != second}


def _figure(name: str, run: Run | None, scored: Evaluation | Run | None) -> float | None:
    """A figure of a run; held-out losses are those of `scored`."""
    record = scored if name in ("val_loss", "val_bpb") else run
    return getattr(record, name) if record else None


# ---- curves -----------------------------------------------------------------------------------


def _curve(run: RunFolder) -> Curve:
    per_step = run.config.train.tokens_per_step
    scores = ((e["step"], e.get("val_bpb")) for e in run.journal if e["event"] == "evaluate")
    return [(step * per_step, val_bpb) for step, val_bpb in scores if val_bpb is not None]


def at_equal_tokens(a: Curve, b: Curve) -> list[tuple[int, float, float]]:
    """Both curves at the same tokens, interpolated, over the range in which both were scored.

    >>> at_equal_tokens([(0, 4.0), (100, 2.0)], [(50, 5.0), (150, 3.0)])
    [(50, 3.0, 5.0), (100, 2.0, 4.0)]
    """
    if not a or not b:
        return []
    first, last = max(a[0][0], b[0][0]), min(a[-1][0], b[-1][0])
    places = sorted({tokens for tokens, _ in (*a, *b) if first <= tokens <= last})
    if len(places) > MAX_ROWS:
        chosen = np.linspace(0, len(places) - 1, MAX_ROWS).round().astype(int)
        places = [places[i] for i in chosen]
    return [(tokens, _at(a, tokens), _at(b, tokens)) for tokens in places]


def _at(curve: Curve, tokens: int) -> float:
    return float(np.interp(tokens, [t for t, _ in curve], [value for _, value in curve]))


# ---- the difference and its interval ----------------------------------------------------------


def _intervals(
    runs: Sequence[RunFolder], evaluations: Sequence[Evaluation | None]
) -> tuple[Interval | None, dict[str, Interval], str | None]:
    """The interval, of all documents and of each source of a mixture, or why there is none."""
    rows, names = [], []
    for run, evaluation in zip(runs, evaluations, strict=True):
        if evaluation is None:
            return None, {}, f"{run.name} is not evaluated: slm evaluate {run.name}"
        try:
            rows.append(document_scores(evaluation))
            names.append(document_sources(evaluation))
        except (OSError, ValueError, KeyError) as error:
            return None, {}, f"an evaluation cannot be read: {error}"
    count = min(map(len, rows))
    a, b = (each[:count] for each in rows)
    if not count or (a[:, 2] != b[:, 2]).any():
        return None, {}, "they were scored on other documents"
    ours, theirs = (each[:count] for each in names)
    if not ours or ours != theirs:
        return _interval(a, b), {}, None
    own = {name: np.array(ours) == name for name in sorted(set(ours))}
    sources = {name: _interval(a[mask], b[mask]) for name, mask in own.items()}
    return _interval(a, b), sources, None


def _interval(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Interval:
    """Of the same documents as two models were scored on them, (N, 3) each."""
    difference, low, high = paired_interval(b[:, 0], a[:, 0], a[:, 2].astype(np.int64))
    return Interval(difference=difference, low=low, high=high, documents=len(a))


def document_scores(evaluation: Evaluation) -> npt.NDArray[np.float64]:
    """(N, 3): nats, tokens and bytes of every document that a run was scored on."""
    details = json.loads((evaluation.path / DETAILS).read_bytes())
    return np.array(details["documents"], np.float64)


def document_sources(evaluation: Evaluation) -> list[str]:
    """The source of every document that a run was scored on; empty where there is one alone."""
    if "sources" not in evaluation.details:
        return []
    details = json.loads((evaluation.path / DETAILS).read_bytes())
    return list(details["document_sources"])


def _benchmarks(a: RunFolder, b: RunFolder) -> tuple[list[TaskDifference], dict[str, str]]:
    """The tasks that both were scored on, and those of which their items cannot be compared."""
    ours, theirs = _scores(a), _scores(b)
    compared: list[TaskDifference] = []
    reasons: dict[str, str] = {}
    shared = [name for name in ours if name in theirs]
    if not shared:
        return compared, reasons
    from slm.evaluation.benchmark.difference import outcomes, task_difference  # loads PyTorch

    for name in shared:
        score, result = ours[name]
        other, other_result = theirs[name]
        if other.sha256 != score.sha256:
            reasons[name] = "they were scored on other items"
            continue
        try:
            first, groups = outcomes(result, name)
            second, _ = outcomes(other_result, name)
        except (OSError, ValueError, KeyError) as error:
            reasons[name] = f"a result cannot be read: {error}"
            continue
        compared.append(task_difference(name, first, second, groups))
    return compared, reasons


def _scores(run: RunFolder) -> dict[str, tuple[TaskScore, Benchmarks]]:
    """Every task that a run was scored on, with the first result that has it."""
    scores: dict[str, tuple[TaskScore, Benchmarks]] = {}
    for result in run.all_benchmarks:
        for score in result.tasks:
            scores.setdefault(score.name, (score, result))
    return scores


# ---- samples ----------------------------------------------------------------------------------


def _samples(a: RunFolder, b: RunFolder) -> list[SamplePair]:
    """The samples of both reports that have the same prompt and settings."""
    ours, theirs = written_samples(a), written_samples(b)
    return [
        SamplePair(prompt=key[0], temperature=key[1], top_k=key[2], a=text, b=theirs[key])
        for key, text in ours.items()
        if key in theirs
    ]


def written_samples(run: RunFolder) -> dict[tuple[str, float, int], str]:
    """The samples of a run's report: (prompt, temperature, top-k) → completion."""
    try:
        rows = json.loads((run.result_folder(REPORT) / "samples.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return {(r["prompt"], r["temperature"], r["top_k"]): r["completion"] for r in rows}
