"""What a stage's key is made from: its name and version, the settings that it reads, its inputs.

The settings are named here one by one. So a setting that is added to the config changes no key
that was made before it: it goes into `ADDED` with the value that means the old behaviour, and is
left out of keys and hashes while it has that value. A test holds every setting of the config to be
in one of the lists.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from slm.config import PipelineConfig
from slm.storage import sha256_json

# What each kind of source reads; the rest may change without a new download.
_READ_FILES = (
    "data.source", "data.documents", "data.train_split", "data.val_split", "data.text_column",
    "data.template", "data.separator",
)  # fmt: skip
DOWNLOAD_SETTINGS = {
    "stories": ("data.source", "data.documents", "data.seed"),
    "files": _READ_FILES,
    "hub": (*_READ_FILES, "data.path", "data.config_name", "data.revision"),
}
ENCODE_SETTINGS = (
    "data.clean.fix_text", "data.clean.min_chars", "data.clean.max_chars",
    "data.clean.exact_duplicates", "data.clean.near_duplicates", "data.val_fraction",
    "data.vocab_size", "data.shard_tokens",
)  # fmt: skip
TRAIN_SETTINGS = (
    "model.architecture", "model.n_layer", "model.n_head", "model.n_kv_head", "model.n_embd",
    "model.n_inner", "model.seq_len", "model.dropout", "model.rope_theta",
    "train.max_steps", "train.max_tokens", "train.max_seconds", "train.epochs",
    "train.tokens_per_step", "train.micro_batch_size", "train.optimizer", "train.learning_rate",
    "train.muon_learning_rate", "train.beta1", "train.beta2", "train.weight_decay",
    "train.grad_clip", "train.schedule", "train.warmup", "train.cooldown", "train.final_lr",
    "train.seed", "train.device", "train.precision", "train.compile", "train.threads",
    "train.processes", "train.deterministic", "train.evaluate_every", "train.evaluate_documents",
    "train.checkpoint_every",
)  # fmt: skip
EVALUATE_SETTINGS = ("evaluate.documents", "evaluate.checkpoint")
REPORT_SETTINGS = (
    "report.prompts", "report.temperatures", "report.top_ks", "report.max_new_tokens",
    "report.seed", "report.license", "report.language", "report.judge_url", "report.judge_model",
    "report.judge_seconds",
)  # fmt: skip

# No result depends on these: how fast it is made, where it goes, when it is made again.
UNHASHED = (
    "recipe", "data.workers", "train.keep_checkpoints",
    "registry.model", "registry.tracking_uri", "registry.gate_documents", "registry.margin",
    "registry.max_bpb", "registry.max_degenerate", "registry.max_memorised",
    "retrain.min_new_fraction", "retrain.max_gone_fraction", "retrain.drift_threshold",
    "retrain.bpb_rise", "retrain.sample_documents", "retrain.continue_fraction",
    "retrain.approval", "retrain.approval_hours",
)  # fmt: skip

# Settings added after the lists above were first used: the key that they belong to, and the value
# with which they are left out of it.
ADDED: dict[str, tuple[str, Any]] = {}


def stage_key(stage: str, version: int, fields: Mapping[str, Any], inputs: Any = None) -> str:
    """The key of a stage's result.

    Args:
        stage: its name.
        version: goes up with every change that makes the stage produce other bytes from the same
            fields and inputs.
        fields: the settings that it reads, as of the functions below.
        inputs: content hashes of what it is given.
    """
    parts = {"stage": stage, "version": version, "fields": dict(fields), "inputs": inputs}
    return sha256_json(parts)


def download_fields(config: PipelineConfig) -> dict[str, Any]:
    """The settings that the download stage reads."""
    return dict(_select(config, DOWNLOAD_SETTINGS[config.data.source], "download")["data"])


def encode_fields(config: PipelineConfig) -> dict[str, Any]:
    """The settings that the encode stage reads and its bytes depend on."""
    return dict(_select(config, ENCODE_SETTINGS, "encode")["data"])


def train_fields(config: PipelineConfig) -> dict[str, Any]:
    """The settings that the train stage reads and its bits depend on: `model` and `train`."""
    return _select(config, TRAIN_SETTINGS, "train")


def evaluate_fields(config: PipelineConfig) -> dict[str, Any]:
    """The settings that the evaluate stage reads."""
    return dict(_select(config, EVALUATE_SETTINGS, "evaluate")["evaluate"])


def report_fields(config: PipelineConfig) -> dict[str, Any]:
    """The settings that the report stage reads."""
    return dict(_select(config, REPORT_SETTINGS, "report")["report"])


def config_sha256(config: PipelineConfig) -> str:
    """The hash of what a model is trained by, which its checkpoints carry."""
    return sha256_json(train_fields(config))


def _select(config: PipelineConfig, names: Iterable[str], stage: str) -> dict[str, Any]:
    """The settings of these dotted names, nested as in the config, and what was added since."""
    flat = config.flat()
    later = [key for key, (owner, old) in ADDED.items() if owner == stage and flat[key] != old]
    selected: dict[str, Any] = {}
    for name in (*names, *later):
        *sections, key = name.split(".")
        place = selected
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = flat[name]
    return selected
