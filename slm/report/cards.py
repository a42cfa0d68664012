"""Tables of the report on the data, the model and its origin, as pairs of text, and the head of
the model card.
"""

import json
import math
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import yaml

from slm.config import LIMITS, ModelConfig, PipelineConfig, Section
from slm.errors import SlmError
from slm.figures import duration
from slm.recipes import load_recipe
from slm.records import (
    Benchmarks,
    Checkpoint,
    Evaluation,
    Run,
    Shards,
    Source,
    TaskScore,
    task_scores,
)
from slm.report.plots import short
from slm.report.prompts import sample_command
from slm.run_folder import PARENT, RunFolder
from slm.size import DERIVED, DIALS

Pairs = list[tuple[str, str]]  # name, value

_WITH_WEIGHTS = {
    *(f"model.{name}" for name in ModelConfig.model_fields if name not in ("dropout", "seq_len")),
    "data.vocab_size",
}
PRIVATE = {"registry.tracking_uri", "report.judge_url"}  # addresses: no model depends on them
PROMISES = {
    "B": "So is the order of the training text; of the weights nothing is promised on this device.",
    "C": "On a CPU of the same kind, with the same torch and as many threads, so are the weights.",
    "D": "On a GPU of the same model, with the same driver and torch, so are the weights.",
    "E": "With as many processes, on the same kind of machine and torch, so are the weights.",
    "F": "With any number of processes, on the same kind of CPU or GPU with the same torch, so are "
    "the weights.",
}


def key_figures(run: Run, checkpoint: Checkpoint, evaluation: Evaluation) -> list[dict[str, str]]:
    """The five figures at the head of the page, of the checkpoint that was evaluated."""
    is_last = checkpoint.step == run.step

    def figure(name: str, value: str, note: str) -> dict[str, str]:
        return {"name": name, "value": value, "note": note}

    return [
        figure("bits per byte", f"{evaluation.val_bpb:.3f}", interval(evaluation)),
        figure("loss", f"{evaluation.val_loss:.3f}", "nats per token, held-out"),
        figure("parameters", short(run.parameters), f"{run.parameters:,}"),
        figure("trained on", short(checkpoint.tokens), f"tokens, in {_steps(run, checkpoint)}"),
        figure(
            "took" if is_last else "training took",
            duration(run.seconds),
            f"{run.tok_per_sec:,.0f} tokens/s, median",
        ),
    ]


def head_figures(run: Run, checkpoint: Checkpoint, evaluation: Evaluation) -> list[dict[str, str]]:
    """The three of them that are above the fold: how good, how large, from how much."""
    bpb, _, parameters, trained, _ = key_figures(run, checkpoint, evaluation)
    took = duration(run.seconds)
    return [bpb, parameters, trained | {"note": f"{trained['note']}, {took}"}]


def training_card(run: Run, checkpoint: Checkpoint, train_loss: float) -> Pairs:
    """How the checkpoint was trained. `train_loss`: nats per token, in its last steps."""
    return [
        ("trained for", _steps(run, checkpoint)),
        ("tokens trained on", f"{checkpoint.tokens:,}"),
        ("time of all steps", duration(run.seconds)),
        ("tokens/s, median", f"{run.tok_per_sec:,.0f}"),
        ("loss of its last steps, nats per token", f"{train_loss:.4f}"),
    ]


def _steps(run: Run, checkpoint: Checkpoint) -> str:
    """The steps of a checkpoint, and of how many where it is not the last of its run."""
    of = f" of {run.step:,}" if checkpoint.step < run.step else ""
    return f"{checkpoint.step:,}{of} steps"


def interval(evaluation: Evaluation) -> str:
    bounds = evaluation.details.get("val_bpb_interval")
    return f"95 %: {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "of held-out text"


def evaluation_card(evaluation: Evaluation) -> Pairs:
    pairs = [
        ("checkpoint", evaluation.checkpoint),
        ("held-out documents, each scored once", f"{evaluation.documents:,}"),
        ("tokens", f"{evaluation.tokens:,}"),
        ("UTF-8 bytes", f"{evaluation.bytes:,}"),
        ("loss, nats per token", f"{evaluation.val_loss:.4f}"),
        ("bits per UTF-8 byte", f"{evaluation.val_bpb:.4f}"),
    ]
    if "val_bpb_interval" in evaluation.details:
        low, high = evaluation.details["val_bpb_interval"]
        pairs.append(("its 95 % interval, documents resampled", f"{low:.4f} to {high:.4f}"))
    if calibration := evaluation.details.get("calibration"):
        pairs += [
            ("most likely token is right", f"{100 * calibration['accuracy']:.1f} %"),
            ("expected calibration error", f"{100 * calibration['error']:.2f} %"),
        ]
    return pairs


def data_card(config: PipelineConfig, shards: Shards | None, source: Source | None) -> Pairs:
    name = source.dataset if source else config.data.dataset_name
    pairs = [("dataset", name)]
    if name == "stories":
        pairs.append(("kind", "synthetic: short stories from this project's own grammar"))
    if source:
        pairs.append(("revision", source.revision))
    if shards is None:
        return [*pairs, ("shards", "no longer on this machine")]
    for split, held in sorted(shards.splits.items()):
        pairs += [
            (f"{split} documents", f"{held.documents:,}"),
            (f"{split} tokens", f"{held.tokens:,}"),
            (f"{split} UTF-8 bytes", f"{held.bytes:,}"),
        ]
    pairs.append(("vocabulary", f"{shards.vocab_size:,} tokens"))
    pairs += [(f"dropped: {reason}", f"{n:,}") for reason, n in sorted(shards.dropped.items())]
    pairs.append(("data card", f"slm inspect {shards.name} --card --open"))
    return pairs


def model_card(config: PipelineConfig, run: Run, checkpoint: Checkpoint, vocab_size: int) -> Pairs:
    shape, train = config.model, config.train
    if train.init_from:  # which the recipe leaves to the weights
        shape = RunFolder.of(run).config.model
    heads = f"{shape.n_head}"
    if shape.n_kv_head not in (None, shape.n_head):
        heads += f", {shape.n_kv_head} of keys and values"
    return [
        ("architecture", shape.architecture),
        ("parameters", f"{run.parameters:,}"),
        ("embedding parameters", f"{vocab_size * shape.n_embd:,}"),
        ("layers", f"{shape.n_layer}"),
        ("heads", heads),
        ("width", f"{shape.n_embd}"),
        ("context", f"{shape.seq_len:,} tokens"),
        *((("started from", started_from(config, run)),) if train.init_from else ()),
        ("optimizer", f"{train.optimizer}, {train.schedule} schedule"),
        ("tokens per step", f"{train.tokens_per_step:,}"),
        ("trained for", _steps(run, checkpoint)),
        ("intended use", "research and teaching: it writes text like its data and knows no facts"),
    ]


def started_from(config: PipelineConfig, run: Run) -> str:
    """The model that `train.init_from` named when the training was made."""
    parent = RunFolder.of(run).parent_record
    return without_folders(parent.model if parent else str(config.train.init_from))


def without_folders(text: str) -> str:
    """The text with only the last part of each path that begins at the root, or at a home.

    >>> without_folders("hf:/home/me/models/mine, models:/slm/3")
    'hf:mine, models:/slm/3'
    """
    return re.sub(r"(^|hf:|\s)(?:~|\.{1,2})?/(?:[^/\s,]+/)*([^/\s,]+)/?", r"\1\2", text)


# ---- origin -----------------------------------------------------------------------------------


def commands(config: PipelineConfig, run: Run, prompts: Sequence[str] = ()) -> list[str]:
    """The commands that reproduce this run, and those that use it."""
    changes = [f"--set {shlex.quote(f'{key}={value}')}" for key, value in _overrides(config, run)]
    is_continued = (run.path / PARENT).is_dir() and config.train.init_from is None
    by_config = not is_continued and RunFolder.of(run).settings.derived is None
    rerun = [" ".join(["slm run", config.recipe, *changes])] if by_config else []
    return [
        f"slm reproduce {run.name}",
        *rerun,
        f"slm evaluate {run.name}",
        sample_command(run.name, prompts),
    ]


def _overrides(config: PipelineConfig, run: Run) -> Pairs:
    """The settings that differ from those of the recipe in `pipelines.yaml` now.

    A limit in seconds gives other steps each time, so the steps that it gave replace it. A size is
    replaced by what it derived: next to settings that are stated it would derive other ones.
    """
    ours = config.flat() | dict.fromkeys(DIALS)
    if config.train.max_seconds is not None:
        ours |= {"train.max_seconds": None, "train.max_steps": run.step}
        ours |= _decided_settings(config, RunFolder.of(run))
    theirs = recipe.flat() if (recipe := _recipe(config)) else {}
    if config.train.init_from:  # the shape comes with the weights, of the version that it was then
        ours = {key: value for key, value in ours.items() if key not in _WITH_WEIGHTS}
        if is_pinned(name := started_from(config, run)):
            ours["train.init_from"] = name
    limits = {f"train.{name}" for name in LIMITS}
    every = (
        {*DERIVED, *limits, "train.max_passes"}
        if any(theirs.get(dial) for dial in DIALS)
        else set()
    )
    return [
        (key, json.dumps(value, ensure_ascii=False))
        for key, value in sorted(ours.items())
        if key not in PRIVATE | {"recipe"}
        and (theirs.get(key) != value or key in every)
        and not (key in limits and value is None)
    ]


def is_pinned(model: str) -> bool:
    """Whether a name stays that of the same weights: a version's number, a commit of the hub."""
    return re.fullmatch(r"models:/[^/@]+/\d+|hf:[^/@]+(/[^/@]+)?@[0-9a-f]{40}", model) is not None


def _decided_settings(config: PipelineConfig, run: RunFolder) -> dict[str, float]:
    """Warmup and cooldown as fractions that give the steps of a run whose end the clock chose.

    A warmup of 17 of 100 steps is 0.165, since it is rounded up. One that the cooldown cut short
    ends where that begins.
    """
    plan, decision = run.plan, run.decision
    if plan is None or decision is None:
        return {}
    start, last = decision.cooldown_start, decision.max_steps
    warmup = min(start, math.ceil(config.train.warmup * plan.max_steps))
    return {
        "train.warmup": max(0.0, warmup - 0.5) / last,
        "train.cooldown": (last - start) / last,
    }


def _recipe(config: PipelineConfig) -> PipelineConfig | None:
    for change in ({}, {"data.path": "."}):  # some recipes leave the path to the command line
        with suppress(SlmError):
            return load_recipe(config.recipe, change)
    return None


def promise(run: Run) -> str:
    """What is the same when the run is reproduced."""
    return (
        "slm reproduce rebuilds the run with the steps, the precision and the batches that it "
        "had, and compares every hash. The shards are the same to the bit on any machine. "
        f"{PROMISES.get(run.level, '')}"
    )


def settings(config: PipelineConfig) -> list[tuple[str, Pairs]]:
    """The whole config, one list per section; limits that are not set are left out."""
    tables = []
    for name in type(config).model_fields:
        if isinstance(section := getattr(config, name), Section):
            given = {k: v for k, v in section.flat().items() if v is not None or k not in LIMITS}
            given = {k: v for key, value in given.items() for k, v in _stated(key, value).items()}
            tables.append((name, [(k, _text(v)) for k, v in given.items()]))
    return tables


def _stated(key: str, value: Any) -> dict[str, Any]:
    """A setting; of mappings, such as the sources of a mixture, what in them is not empty."""
    if not isinstance(value, dict):
        return {key: value}
    inner = {f"{key}.{name}": each for name, each in value.items() if each not in (None, {}, [])}
    return {k: v for name, each in inner.items() for k, v in _stated(name, each).items()}


# ---- the model card ---------------------------------------------------------------------------


def front_matter(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    source: Source | None,
    benchmarks: Sequence[Benchmarks] = (),
) -> str:
    """The YAML at the head of a model card (huggingface.co/docs/hub/model-cards)."""
    generated = config.data.source == "stories" and not config.data.sources
    dataset = source.dataset if source else config.data.dataset_name
    result = {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": {"type": dataset, "name": f"{dataset}, held-out documents", "split": "val"},
        "metrics": [
            {"type": "bits_per_byte", "name": "bits per UTF-8 byte", "value": evaluation.val_bpb},
            {"type": "loss", "name": "nats per token", "value": evaluation.val_loss},
        ],
    }
    scores = task_scores(benchmarks)
    fields: dict[str, Any] = {
        "language": config.report.language,
        "license": config.report.license or ("mit" if generated else "unknown"),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["slm", "small-language-model", config.model.architecture],
        "metrics": ["bits_per_byte", "loss", *(["accuracy"] if scores else [])],
        "model-index": [{"name": evaluation.run, "results": [result, *map(_task_result, scores)]}],
    }
    if config.data.source == "hub":
        fields["datasets"] = [dataset]
    elif on_hub := [text.path for text in config.data.sources.values() if text.source == "hub"]:
        fields["datasets"] = on_hub
    base = started_from(config, run) if config.train.init_from else ""
    if base.startswith("hf:") and is_pinned(base):
        fields["base_model"] = base.removeprefix("hf:").partition("@")[0]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _task_result(score: TaskScore) -> dict[str, Any]:
    """A task of a benchmark as a result of a model card."""
    metric = {"type": "accuracy", "name": "accuracy", "value": score.accuracy}
    return {
        "task": {"type": "text-generation", "name": score.kind.replace("_", " ").capitalize()},
        "dataset": {"type": score.name, "name": score.name},
        "metrics": [metric],
    }


# ---- text -------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, list):
        return " · ".join(map(_text, value))
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
