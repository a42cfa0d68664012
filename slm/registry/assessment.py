"""What the gate knows of a version: its loss beside the champion's, and what speaks against it."""

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from slm import storage
from slm.config import RegistryConfig
from slm.errors import CorruptionError, UserError
from slm.evaluation.evaluate import device_of, score_documents
from slm.evaluation.intervals import paired_interval
from slm.evaluation.memorisation import longest_copies, memorised_share
from slm.evaluation.text_quality import degenerate
from slm.model.sample import generate
from slm.model.saved import MODEL_FILES, load_model
from slm.records import Progress, Shards
from slm.registry.finding import checkpoint_folder, fetch_version, required, run_folder
from slm.run_folder import DataRoot
from slm.tokens.shards.reading import documents, read_shards, read_tokens
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.tracking.server import as_default

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from slm.model.gpt import GPT

FEWEST_DOCUMENTS = 20  # below that, the interval cannot be trusted
SAMPLES = 32  # texts that the vetoes look at
SAMPLE_TOKENS = 128
PROMPT_TOKENS = 8
LINEAGE = (  # tags that every version must carry
    "dataset",
    "dataset_revision",
    "source_key",
    "shards_key",
    "tokenizer_sha256",
    "config_sha256",
    "environment_sha256",
    "run_key",
    "weights_sha256",
    "evaluation_sha256",
    "val_bpb",
)


class Verdict(BaseModel):
    """What the gate found, and what it decided. Differences are challenger minus champion."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    model: str
    version: str
    champion: str | None  # the version that it was measured against, if any
    decision: Literal["promoted", "refused"]
    forced: str | None = None  # the reason that was given for overriding the gate
    val_bpb: float
    champion_bpb: float | None = None
    difference: float | None = None  # bits a byte
    low: float | None = None  # the 95 % interval of the difference
    high: float | None = None
    margin: float
    limits: dict[str, float] = Field(default_factory=dict)  # the gate's settings, by their names
    documents: int
    documents_sha256: str
    vetoes: list[str]
    approval: str | None = None  # who said yes or no before the alias moved, and why
    reason: str
    reused: bool = Field(default=False, exclude=True)  # it stood before, and nothing moved


def gate_settings(config: RegistryConfig) -> dict[str, float]:
    """What the gate goes by; the rest says where the registry is."""
    return config.model_dump(exclude={"model", "tracking_uri"})


def judged(
    client: "MlflowClient",
    entry: "ModelVersion",
    champion: "ModelVersion | None",
    root: Path,
    thresholds: RegistryConfig | None,
    force: str | None,
    progress: Progress,
) -> Verdict:
    """Scores both, asks the vetoes, decides. A champion is measured against absolute thresholds."""
    rival = None if champion is None or champion.version == entry.version else champion
    _check_weights(client, entry, root)
    folder = fetch_version(client, entry, root)
    shards = _shards(entry, root)
    limits = thresholds or _run_thresholds(entry, root)
    texts = _held_out(shards, limits.gate_documents)
    sizes = np.array([len(text.encode()) for text in texts])

    model, tokenizer = load_model(folder, device_of(folder))
    nats = _score(model, tokenizer, texts, progress)
    against = _vetoes(entry, model, tokenizer, texts, shards, limits)
    bpb = _bits_per_byte(nats, sizes)
    measured: dict[str, float] = {}
    if rival:
        rival_folder = fetch_version(client, rival, root)
        measured = _compare(
            nats, _score(*load_model(rival_folder, device_of(folder)), texts, progress), sizes
        )
        better = measured["high"] < limits.margin
        line = (
            f"{measured['difference']:+.4f} bits a byte "
            f"[{measured['low']:+.4f}, {measured['high']:+.4f}], margin {limits.margin:g}"
        )
    else:
        better = bpb <= limits.max_bpb
        line = f"{bpb:.4f} bits a byte, no rival, threshold {limits.max_bpb:g}"
    if not math.isfinite(bpb):
        against.append("its loss is not a number")
    if against:
        line += "; vetoed: " + "; ".join(against)
    return Verdict(
        model=entry.name,
        version=str(entry.version),
        champion=str(rival.version) if rival else None,
        decision="promoted" if force or (better and not against) else "refused",
        forced=force,
        val_bpb=bpb,
        margin=limits.margin,
        limits=gate_settings(limits),
        documents=len(texts),
        documents_sha256=storage.sha256_bytes(storage.canonical_json(texts)),
        vetoes=against,
        reason=line,
        **measured,
    )


def _bits_per_byte(nats: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> float:
    return float(nats.sum() / math.log(2) / sizes.sum())


def _compare(
    nats: npt.NDArray[np.float64],
    rival_nats: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
) -> dict[str, float]:
    """The verdict's figures about the champion."""
    difference, low, high = paired_interval(nats, rival_nats, sizes)
    champion_bpb = _bits_per_byte(rival_nats, sizes)
    return {"difference": difference, "low": low, "high": high, "champion_bpb": champion_bpb}


def _check_weights(client: "MlflowClient", entry: "ModelVersion", root: Path) -> None:
    """Refuses weights that were exchanged, in the registry or in the run, since the evaluation."""
    from mlflow.artifacts import download_artifacts

    wanted = required(entry, "weights_sha256")
    source = f"models:/{entry.name}/{entry.version}/artifacts/{MODEL_FILES[0]}"
    with TemporaryDirectory(dir=root / "mlflow") as temporary, as_default(client):
        stored = storage.sha256_file(Path(download_artifacts(source, dst_path=temporary)))
    if stored != wanted:
        raise CorruptionError(f"the weights of {source} were exchanged: they are not promoted")
    run, weights = run_folder(entry, root), checkpoint_folder(entry, root) / MODEL_FILES[0]
    if weights.exists() and storage.sha256_file(weights) != wanted:
        raise CorruptionError(f"{weights} was exchanged after its evaluation: it is not promoted")
    evaluation = run.evaluation  # verified
    if evaluation and evaluation.weights_sha256 != wanted:
        raise CorruptionError(
            f"{evaluation.path} is of other weights than models:/{entry.name}/{entry.version}: "
            "evaluate and register the run again"
        )


def _shards(entry: "ModelVersion", root: Path) -> Shards:
    key = required(entry, "shards_key")
    if found := DataRoot(root).shards(key):
        return read_shards(found.path)
    raise UserError(
        f"the shards of models:/{entry.name}/{entry.version} are gone from {root / 'shards'}: "
        f"its held-out documents are needed; `slm encode {entry.tags.get('slm.recipe', 'RECIPE')}`"
    )


def _run_thresholds(entry: "ModelVersion", root: Path) -> RegistryConfig:
    run = run_folder(entry, root)
    return run.config.registry if run.exists else RegistryConfig()


def _held_out(shards: Shards, count: int) -> list[str]:
    """The first held-out documents, as text: any tokenizer can be scored on them."""
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    texts: list[str] = []
    for ids in documents(shards, "val"):
        if len(texts) == count:
            break
        if text := tokenizer.decode(ids.tolist()):
            texts.append(text)
    if not texts:
        raise UserError(f"{shards.path} holds no held-out documents: a larger data.val_fraction")
    return texts


def _score(
    model: "GPT", tokenizer: Tokenizer, texts: Sequence[str], progress: Progress
) -> npt.NDArray[np.float64]:
    """Nats spent on each text, (N,)."""
    encoded = (np.array(tokenizer.encode(text), np.int64) for text in texts)
    rows = score_documents(model, tokenizer, encoded, len(texts), progress).rows
    return np.array([nats for nats, _, _ in rows])


def _vetoes(
    entry: "ModelVersion",
    model: "GPT",
    tokenizer: Tokenizer,
    texts: Sequence[str],
    shards: Shards,
    limits: RegistryConfig,
) -> list[str]:
    """What speaks against the version whatever its loss, a line each."""
    found = []
    if missing := [link for link in LINEAGE if f"slm.{link}" not in entry.tags]:
        found.append(f"lineage lacks {', '.join(missing)}")
    if len(texts) < FEWEST_DOCUMENTS:
        found.append(f"{len(texts)} held-out documents are too few to judge by")
    human = [np.array(tokenizer.encode(text), np.int64) for text in texts]
    length = min(PROMPT_TOKENS, model.config.seq_len // 4)
    prompts = [tokenizer.decode(ids[:length].tolist()) for ids in human[:SAMPLES]]
    written = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=SAMPLE_TOKENS,
        temperature=0.8,
        top_k=50,
        seed=range(len(prompts)),
    )
    samples = [np.array(tokenizer.encode(s.completion), np.int64) for s in written]
    broken = [degenerate(s.completion, i) for s, i in zip(written, samples, strict=True)]
    if (share := sum(b is not None for b in broken) / len(broken)) > limits.max_degenerate:
        kinds = ", ".join(sorted({b for b in broken if b}))
        found.append(
            f"{share:.0%} of its samples are {kinds} (at most {limits.max_degenerate:.0%})"
        )
    # Compared as the challenger's shards spell them, whose tokenizer is the challenger's own.
    train = (read_tokens(shards.path / name) for name in shards.splits["train"].files)
    ends = [ids[length : length + SAMPLE_TOKENS] for ids in human]
    found_copies = longest_copies(samples + ends, train, tokenizer.n_vocab)
    lengths = [copy.length for copy in found_copies]
    share = memorised_share(lengths[: len(samples)], lengths[len(samples) :])
    if share > limits.max_memorised:
        found.append(
            f"{share:.0%} of its samples copy more of the training text than human ones do "
            f"(at most {limits.max_memorised:.0%})"
        )
    return found
