"""What the gate measures: a version's loss compared with the champion's, and its vetoes."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slm import storage
from slm.config import RegistryConfig
from slm.errors import CorruptionError, UserError
from slm.evaluation.baselines import naive_baselines
from slm.evaluation.duplicates import contamination
from slm.evaluation.evaluate import device_of, score_documents
from slm.evaluation.intervals import MIN_DOCUMENTS, paired_interval
from slm.evaluation.memorisation import blank_ids, longest_copies, memorised_share
from slm.evaluation.sources import held_out_sources
from slm.evaluation.text_quality import degenerate
from slm.model.sample import generate
from slm.model.saved import MODEL, load_model
from slm.progress import Progress
from slm.records import Shards, TaskDifference
from slm.registry.benchmarks import compare_tasks, scores_to_compare, worse_tasks
from slm.registry.sources import check_margins, compare_sources, worse_sources
from slm.registry.tags import REQUIRED
from slm.registry.versions import GateDecision, ModelVersion, fetch_version, stored_weights_sha256
from slm.run_folder import DataRoot, RunFolder
from slm.tokens.shards.reading import documents, read_shards, split_tokens
from slm.tokens.tokenizer.bpe import TOKENIZER, Ids, Tokenizer

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from slm.model.gpt import GPT

logger = logging.getLogger(__name__)

SAMPLES = 32  # texts that the vetoes look at
SAMPLE_TOKENS = 128
PROMPT_TOKENS = 8


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
    against = _vetoes(version, other, model, tokenizer, texts, shards, limits)
    bpb = _bits_per_byte(nats, sizes)
    measured: dict[str, float] = {}
    baselines: dict[str, float] = {}
    benchmarks: list[TaskDifference] = []
    other_nats = None
    if other:
        other_model, other_tokenizer = load_model(
            fetch_version(client, other, root), device_of(folder)
        )
        other_nats = _score(other_model, other_tokenizer, texts, progress)
        benchmarks = compare_tasks(scores, other, other_model, other_tokenizer, root, progress)
        against += worse_tasks(benchmarks, limits.benchmarks)
        difference, low, high = paired_interval(nats, other_nats, sizes)
        measured = {"difference": difference, "low": low, "high": high}
        measured["champion_bpb"] = _bits_per_byte(other_nats, sizes)
        better = high < limits.margin
        reason = (
            f"{difference:+.4f} bits per byte [{low:+.4f}, {high:+.4f}], margin {limits.margin:g}"
        )
    else:
        missed = [] if bpb <= limits.max_bpb else ["the threshold"]
        reason = f"{bpb:.4f} bits per byte, no champion, threshold {limits.max_bpb:g}"
        if limits.beat_baselines:
            count, naive = naive_baselines(shards, tokenizer, _encoded(tokenizer, texts))
            ours = _bits_per_byte(nats[:count], sizes[:count])
            baselines = {baseline.name: baseline.bpb for baseline in naive}
            missed += [name for name, value in baselines.items() if not ours < value]
            reason += "".join(f", {name} {value:.4f}" for name, value in baselines.items())
        better = not missed
        reason += f"; not below {' and '.join(missed)}" if missed else ""
    by_source = compare_sources(sources, nats, other_nats, sizes, limits.margins)
    against += worse_sources(by_source)
    if not math.isfinite(bpb):
        against.append("its loss is not a number")
    if against:
        reason += "; vetoed: " + "; ".join(against)
    warnings = seen_by_ancestors(run, shards, texts)
    for warning in warnings:
        logger.warning("%s: %s", version.uri, warning)
    return GateDecision(
        model=version.name,
        version=version.version,
        champion=other.version if other else None,
        decision="promoted" if force or (better and not against) else "refused",
        forced=force,
        val_bpb=bpb,
        margin=limits.margin,
        limits=gate_settings(limits),
        documents=len(texts),
        documents_sha256=storage.sha256_json(texts),
        vetoes=against,
        warnings=warnings,
        reason=reason,
        baselines=baselines,
        benchmarks=tuple(benchmarks),
        sources=by_source,
        **measured,
    )


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
        counts = contamination(trained_on, tokenizer, _encoded(tokenizer, texts))
        if known := counts["exact"] + counts["near"]:
            lines.append(
                f"{known} of {counts['documents']} held-out documents are in what {parent.model} "
                "was trained on, whole or nearly: its figure is too good"
            )
    return lines


def _bits_per_byte(nats: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> float:
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


def _score(
    model: "GPT", tokenizer: Tokenizer, texts: Sequence[str], progress: Progress
) -> npt.NDArray[np.float64]:
    """Nats spent on each text, (N,)."""
    encoded = _encoded(tokenizer, texts)
    rows = score_documents(model, tokenizer, encoded, len(texts), progress).rows
    return np.array([nats for nats, _, _ in rows])


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    return [np.array(tokenizer.encode(text), np.int64) for text in texts]


def _vetoes(
    version: ModelVersion,
    champion: ModelVersion | None,
    model: "GPT",
    tokenizer: Tokenizer,
    texts: Sequence[str],
    shards: Shards,
    limits: RegistryConfig,
) -> list[str]:
    """What speaks against the version whatever its loss, a line each."""
    against = []
    if missing := [tag for tag in REQUIRED if tag not in version.tags]:
        against.append(f"lineage lacks {', '.join(missing)}")
    if champion and (veto := _other_dataset(version, champion)):
        against.append(veto)
    if len(texts) < MIN_DOCUMENTS:
        against.append(
            f"held-out documents: {len(texts)}, and the gate needs at least {MIN_DOCUMENTS}"
        )
    human = _encoded(tokenizer, texts)
    length = min(PROMPT_TOKENS, model.config.seq_len // 4)
    prompts = [
        _prompt(tokenizer, text, ids[:length])
        for text, ids in zip(texts[:SAMPLES], human, strict=False)
    ]
    written = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=SAMPLE_TOKENS,
        temperature=0.8,
        top_k=50,
        seed=range(len(prompts)),
    )
    samples = _encoded(tokenizer, [s.completion for s in written])
    broken = [degenerate(s.completion, i) for s, i in zip(written, samples, strict=True)]
    if (share := sum(b is not None for b in broken) / len(broken)) > limits.max_degenerate:
        kinds = ", ".join(sorted({b for b in broken if b}))
        against.append(
            f"{share:.0%} of its samples are {kinds} (at most {limits.max_degenerate:.0%})"
        )
    # Compared as token ids of the challenger's shards, whose tokenizer is the challenger's own.
    train = split_tokens(shards, "train")
    ends = [ids[length : length + SAMPLE_TOKENS] for ids in human]
    blank = blank_ids(tokenizer, samples + ends)
    copies = longest_copies(samples + ends, train, tokenizer.n_vocab, blank=blank)
    lengths = [copy.length for copy in copies]
    share = memorised_share(lengths[: len(samples)], lengths[len(samples) :])
    if share > limits.max_memorised:
        against.append(
            f"{share:.0%} of its samples copy more of the training text than human ones do "
            f"(at most {limits.max_memorised:.0%})"
        )
    return against


def _prompt(tokenizer: Tokenizer, text: str, ids: Ids) -> str:
    """The text of the first ids of a text, without those that end inside a character."""
    while not text.startswith(prompt := tokenizer.decode(ids.tolist())):
        ids = ids[:-1]
    return prompt


def _other_dataset(version: ModelVersion, champion: ModelVersion) -> str | None:
    """Both are scored on the challenger's text, so a champion of another text would lose on it."""
    ours, theirs = version.tags.get("dataset"), champion.tags.get("dataset")
    if ours is None or theirs is None or _is_same_dataset(ours, theirs):
        return None
    return (
        f"it was trained on {ours}, the champion on {theirs}: register it under a name of its own "
        "(registry.model), or --force REASON"
    )


def _is_same_dataset(ours: str, theirs: str) -> bool:
    """Whether two names of datasets may be of the same one.

    A relative path and an absolute one are where the one ends as the other does:

    >>> _is_same_dataset("./texts", "/home/me/project/texts")
    True
    """
    a, b = PurePath(ours), PurePath(theirs)
    if a.is_absolute() == b.is_absolute():
        return a == b
    whole, part = (a, b) if a.is_absolute() else (b, a)
    end = tuple(name for name in part.parts if name != "..")
    return bool(end) and whole.parts[-len(end) :] == end
