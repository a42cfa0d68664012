"""What the gate measures: a version's loss compared with the champion's, and its vetoes."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slm import storage
from slm.config import RegistryConfig
from slm.errors import CorruptionError, UserError
from slm.evaluation.baselines import naive_baselines
from slm.evaluation.duplicates import contamination
from slm.evaluation.evaluate import device_of, score_documents
from slm.evaluation.intervals import paired_interval
from slm.evaluation.sources import held_out_sources
from slm.model.saved import MODEL, load_model
from slm.progress import Progress
from slm.records import Shards, TaskDifference
from slm.registry.benchmarks import compare_tasks, scores_to_compare, worse_tasks
from slm.registry.sources import check_margins, compare_sources, worse_sources
from slm.registry.version import GateDecision, ModelVersion
from slm.registry.versions import fetch_version, stored_weights_sha256
from slm.registry.vetoes import encoded_texts, vetoes
from slm.run_folder import DataRoot, RunFolder
from slm.tokens.shards.reading import documents, read_shards
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from slm.model.gpt import GPT

Nats = npt.NDArray[np.float64]  # spent on each text, (N,)
Sizes = npt.NDArray[np.int64]  # of each in UTF-8 bytes, (N,)

logger = logging.getLogger(__name__)


def gate_settings(config: RegistryConfig) -> dict[str, float]:
    """The settings that the gate decides by; the others name the registry."""
    settings = config.model_dump(exclude={"model", "tracking_uri", "benchmarks", "margins"})
    settings |= {f"benchmarks.{name}": margin for name, margin in config.benchmarks.items()}
    return settings | {f"margins.{name}": margin for name, margin in config.margins.items()}


def assess(
    client: "MlflowClient",
    version: ModelVersion,
    champion: ModelVersion | None,
    root: Path,
    thresholds: RegistryConfig | None,
    force: str | None,
    progress: Progress,
) -> GateDecision:
    """Score a version and the champion, collect the vetoes, decide.

    The champion itself, or a version without one, is held to absolute thresholds, and to what
    counting tokens and a compressor achieve on the same documents.
    """
    other = None if champion is None or champion.version == version.version else champion
    _check_weights(client, version, root)
    folder = fetch_version(client, version, root)
    shards = _shards(version, root)
    run = version.run(root)
    limits = thresholds or (run.config.registry if run.exists else RegistryConfig())
    scores = scores_to_compare(version, limits.benchmarks, root)
    texts, sources = _held_out(shards, limits.gate_documents)
    check_margins(limits.margins, sources)
    sizes = np.array([len(text.encode()) for text in texts])  # bytes, (N,)

    model, tokenizer = load_model(folder, device_of(folder))
    nats = _score(model, tokenizer, texts, progress)
    against = vetoes(version, other, model, tokenizer, texts, shards, limits)
    bpb = _bits_per_byte(nats, sizes)
    other_nats: Nats | None = None
    benchmarks: list[TaskDifference] = []
    if other:
        theirs = load_model(fetch_version(client, other, root), device_of(folder))
        other_nats = _score(*theirs, texts, progress)
        verdict = _against_champion(nats, other_nats, sizes, limits)
        benchmarks = compare_tasks(scores, other, *theirs, root, progress)
        against += worse_tasks(benchmarks, limits.benchmarks)
    else:
        verdict = _alone(nats, sizes, limits, shards, tokenizer, texts)
    by_source = compare_sources(sources, nats, other_nats, sizes, limits.margins)
    against += worse_sources(by_source)
    if not math.isfinite(bpb):
        against.append("its loss is not a number")
    reason = verdict.reason + ("; vetoed: " + "; ".join(against) if against else "")
    warnings = seen_by_ancestors(run, shards, texts)
    for warning in warnings:
        logger.warning("%s: %s", version.uri, warning)
    return GateDecision(
        model=version.name,
        version=version.version,
        champion=other.version if other else None,
        decision="promoted" if force or (verdict.better and not against) else "refused",
        forced=force,
        val_bpb=bpb,
        margin=limits.margin,
        limits=gate_settings(limits),
        documents=len(texts),
        documents_sha256=storage.sha256_json(texts),
        vetoes=against,
        warnings=warnings,
        reason=reason,
        baselines=verdict.baselines,
        benchmarks=tuple(benchmarks),
        sources=by_source,
        **verdict.measured,
    )


@dataclass(frozen=True)
class _Verdict:
    """What the held-out documents show of a version, whatever speaks against it besides."""

    better: bool
    reason: str
    measured: dict[str, float] = field(default_factory=dict)  # next to the champion
    baselines: dict[str, float] = field(default_factory=dict)  # bits per byte, by their names


def _against_champion(
    nats: Nats, other_nats: Nats, sizes: Sizes, limits: RegistryConfig
) -> _Verdict:
    """Whether a version is better than the champion on the same documents, at 95 % confidence."""
    difference, low, high = paired_interval(nats, other_nats, sizes)
    measured = {"difference": difference, "low": low, "high": high}
    measured["champion_bpb"] = _bits_per_byte(other_nats, sizes)
    reason = f"{difference:+.4f} bits per byte [{low:+.4f}, {high:+.4f}], margin {limits.margin:g}"
    return _Verdict(high < limits.margin, reason, measured)


def _alone(
    nats: Nats,
    sizes: Sizes,
    limits: RegistryConfig,
    shards: Shards,
    tokenizer: Tokenizer,
    texts: Sequence[str],
) -> _Verdict:
    """Whether a first champion is good enough: better than a threshold, and than baselines."""
    bpb = _bits_per_byte(nats, sizes)
    missed = [] if bpb <= limits.max_bpb else ["the threshold"]
    reason = f"{bpb:.4f} bits per byte, no champion, threshold {limits.max_bpb:g}"
    baselines: dict[str, float] = {}
    if limits.beat_baselines:
        count, naive = naive_baselines(shards, tokenizer, encoded_texts(tokenizer, texts))
        ours = _bits_per_byte(nats[:count], sizes[:count])
        baselines = {baseline.name: baseline.bpb for baseline in naive}
        missed += [name for name, value in baselines.items() if not ours < value]
        reason += "".join(f", {name} {value:.4f}" for name, value in baselines.items())
    reason += f"; not below {' and '.join(missed)}" if missed else ""
    return _Verdict(not missed, reason, baselines=baselines)


def seen_by_ancestors(run: RunFolder, shards: Shards, texts: Sequence[str]) -> list[str]:
    """Which models that a run started from may have seen its held-out documents, a line each.

    The duplicates are those of `slm.evaluation.duplicates`, in what each of them was trained on. A
    champion of the same line knows those documents too, any other one does not.

    `shards`: the run's own, whose duplicates the evaluation has counted.
    """
    lines = []
    while parent := run.parent_record:
        ancestor = run.root.named_run(parent.run) if parent.run else None
        trained_on = ancestor.shards if ancestor and ancestor.exists else None
        if ancestor is None or trained_on is None:
            lines.append(
                f"what {parent.model} was trained on is not known here, so nor is whether the "
                "held-out documents were in it"
            )
            break
        run = ancestor
        if trained_on.key == shards.key:
            continue
        tokenizer = Tokenizer.load(trained_on.path / TOKENIZER)
        counts = contamination(trained_on, tokenizer, encoded_texts(tokenizer, texts))
        if known := counts["exact"] + counts["near"]:
            lines.append(
                f"{known} of {counts['documents']} held-out documents are in what {parent.model} "
                "was trained on, whole or nearly: its figure is too good"
            )
    return lines


def _bits_per_byte(nats: Nats, sizes: Sizes) -> float:
    return float(nats.sum() / math.log(2) / sizes.sum())


def _check_weights(client: "MlflowClient", version: ModelVersion, root: Path) -> None:
    """Refuse weights that were exchanged, in the registry or in the run, since the evaluation."""
    registered = version.required("weights_sha256")
    stored = stored_weights_sha256(client, version, root)
    if stored is None:
        raise UserError(
            f"the files of {version.uri} are gone from the registry: `slm register "
            f"{version.tags.get('run', 'RUN')}` in a registry of its own, or restore them"
        )
    if stored != registered:
        raise CorruptionError(
            f"{MODEL} of {version.uri} was exchanged in the registry: it is not promoted"
        )
    run, weights = version.run(root), version.checkpoint(root) / MODEL
    if weights.exists() and storage.sha256_file(weights) != registered:
        raise CorruptionError(f"{weights} was exchanged after its evaluation: it is not promoted")
    evaluation = run.find_evaluation(version.tags.get("evaluation_key", ""))
    if evaluation is None:
        return
    storage.check_files(evaluation.path)
    if evaluation.weights_sha256 != registered:
        raise CorruptionError(
            f"{evaluation.path} is of other weights than {version.uri}: evaluate and register the "
            "run again"
        )


def _shards(version: ModelVersion, root: Path) -> Shards:
    if shards := DataRoot(root).shards(version.required("shards_key")):
        return read_shards(shards.path)
    raise UserError(
        f"the shards of {version.uri} are gone from {root / 'shards'}: its held-out documents are "
        f"needed; `slm encode {version.tags.get('recipe', 'RECIPE')}`"
    )


def _held_out(shards: Shards, count: int) -> tuple[list[str], list[str]]:
    """The first held-out documents, as text: any tokenizer can be scored on them.

    And the source of each; none where the shards are of one.
    """
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    names = held_out_sources(shards)
    texts: list[str] = []
    sources: list[str] = []
    for number, ids in enumerate(documents(shards, "val")):
        if len(texts) == count:
            break
        if text := tokenizer.decode(ids.tolist()):
            texts.append(text)
            sources += names[number : number + 1]
    if not texts:
        raise UserError(f"{shards.path} holds no held-out documents: a larger data.val_fraction")
    return texts, sources


def _score(model: "GPT", tokenizer: Tokenizer, texts: Sequence[str], progress: Progress) -> Nats:
    """Nats spent on each text, (N,)."""
    encoded = encoded_texts(tokenizer, texts)
    rows = score_documents(model, tokenizer, encoded, len(texts), progress).rows
    return np.array([nats for nats, _, _ in rows])
