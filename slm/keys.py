"""What a stage's key is made from: its name and version, the settings that it reads, its inputs.

The settings are named here one by one. So a setting that is added to the config changes no key
that was made before it: it goes into `ADDED` with the value that means the old behaviour, and is
left out of keys and hashes while it has that value. A test holds every setting of the config to be
in one of the lists.
"""

from collections.abc import Mapping
from typing import Any, get_args

from slm.config import CleanConfig, PipelineConfig, TrainConfig
from slm.machine import cpu_name
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
# What the other stages read.
SETTINGS = {
    "tokenizer": (),  # see ADDED, and SHARED
    "encode": (
        "data.clean.fix_text", "data.clean.min_chars", "data.clean.max_chars",
        "data.clean.exact_duplicates", "data.clean.near_duplicates", "data.val_fraction",
        "data.vocab_size", "data.shard_tokens",
    ),
    "train": (
        "model.architecture", "model.n_layer", "model.n_head", "model.n_kv_head", "model.n_embd",
        "model.n_inner", "model.seq_len", "model.dropout", "model.rope_theta",
        "train.max_steps", "train.max_tokens", "train.max_seconds", "train.epochs",
        "train.tokens_per_step", "train.micro_batch_size", "train.optimizer",
        "train.learning_rate", "train.muon_learning_rate", "train.beta1", "train.beta2",
        "train.weight_decay", "train.grad_clip", "train.schedule", "train.warmup",
        "train.cooldown", "train.final_lr", "train.seed", "train.device", "train.precision",
        "train.compile", "train.threads", "train.deterministic",
    ),
    "select": ("train.evaluate_every", "train.evaluate_documents"),
    "evaluate": ("evaluate.documents", "evaluate.checkpoint"),
    "benchmark": ("benchmark.tasks", "benchmark.baselines"),
    "report": (
        "report.prompts", "report.temperatures", "report.top_ks", "report.max_new_tokens",
        "report.seed", "report.license", "report.language", "report.judge_url",
        "report.judge_model", "report.judge_seconds",
    ),
}  # fmt: skip

# What a stage reads of the settings of another: a vocabulary is trained on train as it is encoded.
SHARED: dict[str, tuple[str, ...]] = {
    "tokenizer": tuple(
        name for name in SETTINGS["encode"] if name.startswith(("data.clean.", "data.val_"))
    )
}

# No result depends on these: how fast it is made, where it goes, when a model is trained again.
UNHASHED = (
    "recipe", "name", "size", "depth",
    "data.workers", "data.runner", "data.runner_address", "train.processes",
    "train.launch.nnodes", "train.launch.rdzv_endpoint", "train.launch.max_restarts",
    "train.launch.lost_seconds", "train.checkpoint_every", "train.keep_checkpoints",
    "registry.model", "registry.tracking_uri", "registry.gate_documents", "registry.margin",
    "registry.max_bpb", "registry.beat_baselines", "registry.max_degenerate",
    "registry.max_memorised", "registry.benchmarks", "registry.margins",
    "retrain.min_new_fraction", "retrain.max_gone_fraction", "retrain.drift_threshold",
    "retrain.bpb_rise", "retrain.sample_documents", "retrain.continue_fraction",
    "retrain.approval", "retrain.approval_hours",
)  # fmt: skip

# … but for these under ddp and fsdp, whose sums follow the number of processes: see `run_fields`.
# With one of these values they are left out: one process, or what the machine has.
PROCESSES = ("train.processes", "train.launch.nnodes")
_ALONE = ("auto", None, 1, "1", "1:1")

# Settings added after the lists above were first used: the key that they belong to, and the value
# with which they are left out of it.
ADDED: dict[str, tuple[str, Any]] = {
    "data.format": ("download", None),
    "data.columns": ("download", []),
    "data.tokenizer.train": ("tokenizer", None),
    "data.tokenizer.vocab_size": ("tokenizer", 8192),
    "data.tokenizer.documents": ("tokenizer", None),
    "data.tokenizer.pattern": ("tokenizer", "gpt2"),
    "data.tokenizer.special_tokens": ("tokenizer", []),
    "train.parallel": ("train", "elastic"),
    "train.micro_batches": ("train", "auto"),
    "train.max_passes": ("train", None),
    "train.document_mask": ("train", False),
    "train.rows": ("train", "windows"),
}

# Settings that name an input, and the stages that read it: their keys have the hash of the input.
BY_CONTENT: dict[str, tuple[str, ...]] = {
    "train.init_from": ("encode", "train"),
    "data.clean.map": ("tokenizer", "encode"),
    "data.clean.filter": ("tokenizer", "encode"),
    "data.tokenizer.path": ("tokenizer",),
    "data.sources": ("train",),  # by the keys of their shards, and `mixture_fields`
    "data.phases": ("train",),
}

_EMPTY = ("data.sources", "data.phases")  # of those, lists that were empty before they were added

# What the stages read of one source of a mixture.
OF_SOURCE: dict[str, tuple[str, ...]] = {
    "download": (
        *(each.removeprefix("data.") for each in _READ_FILES), "path", "config_name", "revision",
        "seed", "format", "columns", "license",
    ),
    "encode": (
        *(f"clean.{name}" for name in CleanConfig.model_fields), "val_fraction",
    ),
    "train": ("weight", "max_epochs"),
}  # fmt: skip

# Settings that the key of `train` once had, though no weight depends on them. So that no key
# changes, it is made with a fixed value of each: the default of that time, or that of the recipes
# which were shipped with others.
FORMER: dict[str, Any] = {
    "train.evaluate_every": 100, "train.evaluate_documents": 64, "train.checkpoint_every": 100,
}  # fmt: skip
_PROCESSES = {"train.processes": "auto"}  # likewise; a run of a fixed number had it in its key
_LARGE = {"train.evaluate_every": 250, "train.evaluate_documents": 512}
FORMER_OF_RECIPES: dict[str, dict[str, Any]] = {
    "tinystories": {**_LARGE, "train.checkpoint_every": 250},
    "tinystories-gpt2": {"train.evaluate_documents": 512},
    "gpt2-124m": {**_LARGE, "train.checkpoint_every": 1000},
}


def stage_key(stage: str, version: int, fields: Mapping[str, Any], inputs: Any = None) -> str:
    """The key of a stage's result.

    Args:
        stage: its name.
        version: goes up with every change that makes the stage produce other bytes from the same
            fields and inputs.
        fields: the settings that it reads, as of `stage_fields`.
        inputs: content hashes of what it is given.
    """
    parts = {"stage": stage, "version": version, "fields": dict(fields), "inputs": inputs}
    return sha256_json(parts)


def stage_fields(stage: str, config: PipelineConfig) -> dict[str, Any]:
    """The settings that a stage reads and its bytes depend on, nested as in the config.

    `train` reads two sections, `model` and `train`; of any other stage the one section is returned.
    """
    names = DOWNLOAD_SETTINGS[config.data.source] if stage == "download" else SETTINGS[stage]
    names = (*names, *SHARED.get(stage, ()))
    flat = config.flat()
    later = [key for key, (owner, old) in ADDED.items() if owner == stage and flat[key] != old]
    values = {name: flat[name] for name in (*names, *later)}
    if stage == "train":
        values |= mixture_fields(config)
        former = FORMER | _PROCESSES | FORMER_OF_RECIPES.get(config.recipe, {})
        return _nested(values | former)
    return dict(*_nested(values).values())


def mixture_fields(config: PipelineConfig) -> dict[str, Any]:
    """What of a mixture only the order of the training depends on; empty without one."""
    data = config.data
    if not data.sources:
        return {}
    sources = {
        name: {"weight": source.weight, "max_epochs": source.max_epochs}
        for name, source in data.sources.items()
    }
    return {"mixture": {"sources": sources, "phases": config.flat()["data.phases"]}}


def names_of_sources(stage: str, config: PipelineConfig) -> tuple[str, ...]:
    """The settings of each source of a mixture that a stage reads, by their dotted keys."""
    return tuple(
        f"data.sources.{source}.{name}"
        for source in config.data.sources
        for name in OF_SOURCE[stage]
    )


def with_sources(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key in which each setting of a source of a mixture has its own.

    `data.sources` is then the list of their names.
    """
    sources = flat.get("data.sources", {})
    if not isinstance(sources, Mapping):
        return dict(flat)
    values = {**flat, "data.sources": sorted(sources)}
    later = {name.removeprefix("data."): old for name, (owner, old) in ADDED.items()
             if owner == "download"}  # fmt: skip
    for source, text in sources.items():
        for name, value in {**later, **text}.items():
            inner = value if isinstance(value, Mapping) else {"": value}
            for last, each in inner.items():
                values[f"data.sources.{source}.{name}{'.' * bool(last)}{last}"] = each
    return values


def default_of(name: str) -> Any:
    """The value of a setting in results from before it was added. Raises KeyError."""
    if name in _EMPTY:
        return []
    return None if name in BY_CONTENT else ADDED[name][1]


def names_of(stage: str, source: str | None = None) -> tuple[str, ...]:
    """The settings that a stage's result can depend on, by their dotted keys.

    `source`: of `download`, the kind of source; None: of any. The path of local files is among
    them, though the key has what is in the files instead.
    """
    later = [name for name, (owner, _) in ADDED.items() if owner == stage]
    later += [name for name, stages in BY_CONTENT.items() if stage in stages]
    if stage != "download":
        return (*SETTINGS[stage], *SHARED.get(stage, ()), *later)
    kinds = [source] if source else list(DOWNLOAD_SETTINGS)
    names = [name for kind in kinds for name in DOWNLOAD_SETTINGS[kind]]
    paths = ["data.path"] if "files" in kinds else []
    return tuple(dict.fromkeys((*names, *paths, *later)))


def made(stage: str, config: PipelineConfig) -> dict[str, Any]:
    """What `made.json` keeps of a result: the settings of `names_of` as they were given, the CPU.

    It is for people and plans: no key, hash or stage depends on it.
    """
    flat, names = config.flat(), names_of(stage)
    if config.data.sources:
        names = (*names, "data.sources", "data.vocab_size")
    if stage == "encode" and config.data.makes_vocabulary:
        names = (*names, *names_of("tokenizer"))
    return {"settings": {name: flat[name] for name in names}, "cpu": cpu_name()}


def train_fields(config: PipelineConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `train` as they are now, and as they were while those of `FORMER` counted."""
    fields, flat = stage_fields("train", config), config.flat()
    former = {name.removeprefix("train."): flat[name] for name in FORMER}
    return fields, {**fields, "train": {**fields["train"], **former}}


def run_fields(config: PipelineConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the key of a run is made from: `train_fields`, and the processes where they count.

    A checkpoint's hash of the config never has them: any number may resume a run that exists.
    """
    flat = config.flat()
    given = {name: flat[name] for name in process_settings(config)}
    several = {name.removeprefix("train."): n for name, n in given.items() if n not in _ALONE}
    now, former = (
        {**fields, "train": {**fields["train"], **several}} for fields in train_fields(config)
    )
    return now, former


def process_settings(config: PipelineConfig) -> tuple[str, ...]:
    """The settings of the number of processes, where a run's bits follow it: under ddp and fsdp."""
    return () if config.train.parallel == "elastic" else PROCESSES


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys → nested as in the config."""
    sections: dict[str, Any] = {}
    for name, value in values.items():
        *path, key = name.split(".")
        place = sections
        for section in path:
            place = place.setdefault(section, {})
        place[key] = value
    return sections


def config_sha256(config: PipelineConfig) -> str:
    """The hash of what a model is trained by, which its checkpoints carry."""
    return sha256_json(stage_fields("train", config))


def config_hashes(config: PipelineConfig) -> list[str]:
    """`config_sha256`, and what it was of this config while those of `FORMER` counted, and the
    processes.
    """
    known = train_fields(config)
    processes = config.train.processes
    former = [{**f, "train": {**f["train"], "processes": processes}} for f in known]
    return [sha256_json(fields) for fields in (*known, *former)]


def resumable_hashes(config: PipelineConfig) -> list[str]:
    """What a checkpoint may carry that this config can resume: it may be of any `parallel`."""
    train = config.train
    configs = [config] + [
        config.model_copy(update={"train": train.model_copy(update={"parallel": parallel})})
        for parallel in get_args(TrainConfig.model_fields["parallel"].annotation)
        if parallel != train.parallel
    ]
    return [digest for each in configs for digest in config_hashes(each)]
