"""What the report says of the data, the model and their origin: records as pairs of words."""

import json
import shlex
from contextlib import suppress
from typing import Any

from slm.config import LIMITS, PipelineConfig, Section
from slm.errors import SlmError
from slm.recipes import load_recipe
from slm.records import Checkpoint, Evaluation, Run, Shards, Source
from slm.report.plots import short
from slm.run_folder import PARENT

Pairs = list[tuple[str, str]]

PRIVATE = {"registry.tracking_uri", "report.judge_url"}  # addresses, which no model depends on
PROMISES = {
    "C": "On a CPU of the same kind, with the same torch and as many threads, so do the weights.",
    "D": "On a GPU of the same model with the same driver and torch, so do the weights.",
    "E": "On as many GPUs of the same model, with the same driver and torch, so do the weights.",
}


def key_figures(run: Run, checkpoint: Checkpoint, evaluation: Evaluation) -> list[dict[str, str]]:
    """The five figures at the head of the page, of the checkpoint that was evaluated."""
    cut = checkpoint.step < run.step

    def figure(name: str, value: str, note: str) -> dict[str, str]:
        return {"name": name, "value": value, "note": note}

    return [
        figure("bits a byte", f"{evaluation.val_bpb:.3f}", interval(evaluation)),
        figure("loss", f"{evaluation.val_loss:.3f}", "nats a token, held-out"),
        figure("parameters", short(run.parameters), f"{run.parameters:,}"),
        figure("trained on", short(checkpoint.tokens), f"tokens, in {_steps(run, checkpoint)}"),
        figure(
            "training took" if cut else "took",
            duration(run.seconds),
            f"{run.tok_per_sec:,.0f} tokens a second, median",
        ),
    ]


def _steps(run: Run, checkpoint: Checkpoint) -> str:
    """The steps behind a checkpoint, and where it is not the last of its run, of how many."""
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
        ("loss, nats a token", f"{evaluation.val_loss:.4f}"),
        ("bits a UTF-8 byte", f"{evaluation.val_bpb:.4f}"),
    ]
    if "val_bpb_interval" in evaluation.details:
        low, high = evaluation.details["val_bpb_interval"]
        pairs.append(("its 95 % interval, documents resampled", f"{low:.4f} to {high:.4f}"))
    if calibration := evaluation.details.get("calibration"):
        pairs += [
            ("likeliest token is right", f"{100 * calibration['accuracy']:.1f} %"),
            ("expected calibration error", f"{100 * calibration['error']:.2f} %"),
        ]
    return pairs


def data_card(config: PipelineConfig, shards: Shards | None, source: Source | None) -> Pairs:
    name = source.dataset if source else config.data.path or config.data.source
    pairs = [("dataset", name)]
    if name == "stories":
        pairs.append(("kind", "synthetic: short stories from a grammar of this project's own"))
    if source:
        pairs.append(("revision", source.revision))
    if shards is None:
        return [*pairs, ("shards", "no longer on this machine")]
    for split in sorted(shards.splits):
        held = shards.splits[split]
        pairs += [
            (f"{split} documents", f"{held.documents:,}"),
            (f"{split} tokens", f"{held.tokens:,}"),
            (f"{split} UTF-8 bytes", f"{held.bytes:,}"),
        ]
    pairs.append(("vocabulary", f"{shards.vocab_size:,} tokens"))
    pairs += [(f"dropped: {why}", f"{n:,}") for why, n in sorted(shards.dropped.items())]
    return pairs


def model_card(config: PipelineConfig, run: Run, checkpoint: Checkpoint, vocab_size: int) -> Pairs:
    shape, train = config.model, config.train
    heads = f"{shape.n_head}"
    if shape.n_kv_head not in (None, shape.n_head):
        heads += f", of keys and values {shape.n_kv_head}"
    return [
        ("architecture", shape.architecture),
        ("parameters", f"{run.parameters:,}"),
        ("of them in the embedding", f"{vocab_size * shape.n_embd:,}"),
        ("layers", f"{shape.n_layer}"),
        ("heads", heads),
        ("width", f"{shape.n_embd}"),
        ("context", f"{shape.seq_len:,} tokens"),
        ("optimizer", f"{train.optimizer}, {train.schedule} schedule"),
        ("tokens a step", f"{train.tokens_per_step:,}"),
        ("trained for", _steps(run, checkpoint)),
        ("meant for", "research and teaching: it writes text like its data, facts it has none"),
    ]


# ---- where it comes from ----------------------------------------------------------------------


def commands(config: PipelineConfig, run: Run) -> list[str]:
    """The commands that make this run again, and those that use it."""
    changes = [f"--set {shlex.quote(f'{key}={value}')}" for key, value in _overrides(config, run)]
    prompt = next(iter(config.report.prompts), "Once upon a time")
    anew = [] if (run.path / PARENT).is_dir() else [" ".join(["slm run", config.recipe, *changes])]
    return [
        f"slm reproduce {run.name}",
        *anew,
        f"slm evaluate {run.name}",
        f"slm sample {run.name} --prompt {shlex.quote(prompt)}",
    ]


def _overrides(config: PipelineConfig, run: Run) -> Pairs:
    """What the config has that its recipe, as `pipelines.yaml` has it now, has not.

    A limit in seconds comes to other steps each time: the steps that it came to stand for it.
    """
    ours = config.flat()
    if config.train.max_seconds is not None:
        ours |= {"train.max_seconds": None, "train.max_steps": run.step}
    theirs = recipe.flat() if (recipe := _recipe(config)) else {}
    limits = {f"train.{name}" for name in LIMITS}
    return [
        (key, json.dumps(value, ensure_ascii=False))
        for key, value in sorted(ours.items())
        if key not in PRIVATE | {"recipe"}
        and theirs.get(key) != value
        and not (key in limits and value is None)
    ]


def _recipe(config: PipelineConfig) -> PipelineConfig | None:
    for change in ({}, {"data.path": "."}):  # some recipes leave the path to the command line
        with suppress(SlmError):
            return load_recipe(config.recipe, change)
    return None


def promise(run: Run) -> str:
    """What comes out the same when the run is made again."""
    return (
        "slm reproduce makes the run again with the steps, the precision and the batches that it "
        "had, and compares every hash. The shards come out the same to the bit on any machine. "
        f"{PROMISES.get(run.level, '')}"
    )


def settings(config: PipelineConfig) -> list[tuple[str, Pairs]]:
    """The whole config, a list a section; limits that are not set are left out."""
    tables = []
    for name in type(config).model_fields:
        if isinstance(section := getattr(config, name), Section):
            given = {k: v for k, v in section.flat().items() if v is not None or k not in LIMITS}
            tables.append((name, [(k, _text(v)) for k, v in given.items()]))
    return tables


# ---- words ------------------------------------------------------------------------------------


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


def duration(seconds: float) -> str:
    """The two largest of hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
