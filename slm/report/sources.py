"""The sources of a mixture in the report: the share of each, and how well it is predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.config import PipelineConfig
from slm.records import Evaluation, Shards, Source, source_bpb
from slm.report.plots import FIRST, INK, MUTED, SECOND, Curves, Line, line_plot, points, short
from slm.run_folder import RunFolder
from slm.tokens.mixture.order import Realised, realised

COLOURS = (FIRST, SECOND, INK, MUTED)


@dataclass(frozen=True)
class Row:
    """A source; None for what is not known, such as where the shards are gone."""

    name: str
    dataset: str | None
    license: str | None
    asked: str  # its share of the rows, by the weights
    realised: float | None  # its share of the rows that were trained on
    epochs: float | None
    documents: int | None  # of train, without what is excluded
    tokens: int | None
    excluded: Mapping[str, int]  # reason → documents
    held_out: int | None  # documents that were scored
    val_bpb: float | None
    low: float | None
    high: float | None


def rows(
    config: PipelineConfig,
    run: RunFolder,
    shards: Shards | None,
    source: Source | None,
    evaluation: Evaluation,
) -> list[Row]:
    """A row for each source of a mixture; none where there is one source alone."""
    figures = evaluation.details.get("sources", {})
    names = sorted({*figures, *(shards.parts if shards else ())})
    if not names:
        return []
    trained = realised(run)
    return [_row(name, config, trained, shards, source, figures.get(name, {})) for name in names]


def _row(
    name: str,
    config: PipelineConfig,
    trained: Mapping[str, Realised],
    shards: Shards | None,
    source: Source | None,
    figures: Mapping[str, Any],
) -> Row:
    part = shards.parts.get(name) if shards else None
    of_source = source.parts.get(name) if source else None
    every = sum(each.rows for each in trained.values())
    own = trained.get(name)
    text = config.data.sources.get(name)
    return Row(
        name=name,
        dataset=of_source.dataset if of_source else None,
        license=(part and part.license) or (text and text.license) or None,
        asked=asked(config, name),
        realised=own.rows / every if own and every else None,
        epochs=own.epochs if own else None,
        documents=part.train.documents if part else None,
        tokens=part.train.tokens if part else None,
        excluded=part.excluded if part else {},
        held_out=figures.get("documents"),
        val_bpb=figures.get("val_bpb"),
        low=figures.get("low"),
        high=figures.get("high"),
    )


def asked(config: PipelineConfig, name: str) -> str:
    """The share of a source by the weights, such as `70.0 %`; of phases that of each."""
    sources = config.data.sources
    if name not in sources:
        return "unknown"
    own = {source: text.weight for source, text in sources.items()}
    shares, begin = [], 0.0
    for weights, until in [(p.weights, p.until) for p in config.data.phases] or [({}, 1.0)]:
        of_phase = {source: weights.get(source, weight) for source, weight in own.items()}
        share = _percent(of_phase[name] / (sum(of_phase.values()) or 1.0))
        shares.append(f"from {100 * begin:g} % of the steps {share}" if begin else share)
        begin = until
    return ", ".join(shares)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def cells(row: Row) -> dict[str, str]:
    """A row as text, by the names of the columns."""

    def known(value: Any, form: str) -> str:
        return "–" if value is None else format(value, form)

    interval = "" if row.low is None else f"95 %: {row.low:.3f} to {row.high:.3f}"
    return {
        "share asked": row.asked,
        "realised": "–" if row.realised is None else _percent(row.realised),
        "epochs": known(row.epochs, ".2f"),
        "train documents": known(row.documents, ","),
        "train tokens": "–" if row.tokens is None else short(row.tokens),
        "excluded": ", ".join(f"{n:,} {why}" for why, n in row.excluded.items()) or "none",
        "held-out documents": known(row.held_out, ","),
        "bits per byte": known(row.val_bpb, ".3f"),
        "interval": interval,
    }


def plot(curves: Curves, names: Sequence[str]) -> list[str]:
    """The held-out bits per byte of each source over the tokens of training; none without them."""
    lines = [
        Line(name, *points(curves.evaluations, "tokens", source_bpb(name)), colour, marked=True)
        for name, colour in zip(names, COLOURS * len(names), strict=False)
    ]
    lines = [line for line in lines if line.ys]
    if not lines:
        return []
    alt = "Held-out bits per byte in training: " + ", ".join(
        f"{line.label} from {line.ys[0]:.2f} to {line.ys[-1]:.2f}" for line in lines
    )
    title = "held-out bits per byte of each source"
    return [line_plot("sources", f"{alt}.", "tokens", title, lines)]
