"""What a run folder holds, in MLflow's terms: metrics, dataset inputs, params and tags.

Nothing here talks to a server. No value carries a password: `public_uri` removes it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm import storage
from slm.config import PipelineConfig, TextConfig
from slm.errors import CorruptionError
from slm.records import Checkpoint, Decision, Evaluation, Plan, Run, Shards, TaskScore
from slm.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric

MEASURED = ("step", "evaluate", "system")  # events of the journal that carry metrics


def public_uri(text: str) -> str:
    """The text without the user and password of every address in it."""
    return re.sub(r"(\w://)[^/@\s]+@", r"\1", text)


def metrics(event: Mapping[str, Any]) -> list["Metric"]:
    from mlflow.entities import Metric

    if event.get("event") not in MEASURED:
        return []
    moment = int(event["time"] * 1000)
    return [
        Metric(key, float(value), moment, event["step"])
        for key, value in event.items()
        if key not in ("step", "time")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]


def params(
    config: PipelineConfig, plan: Plan | None, decision: Decision | None = None
) -> dict[str, str]:
    """Settings, plan and decision as MLflow params; JSON where the value is no text."""
    # The name that a version gets is shown where the config leaves it to the data.
    values = {**config.flat(), "registry.model": config.model_name}
    if plan:
        fields = plan.model_dump(mode="json")
        for name in ("warmup_steps", "ended_at"):  # of a run that was made from another one
            if fields[name] is None:
                del fields[name]
        probe = fields.pop("probe")
        values |= {f"plan.{name}": value for name, value in fields.items()}
        values |= {f"plan.probe.{name}": value for name, value in probe.items()}
    if decision:
        fields = decision.model_dump(mode="json")
        values |= {f"decision.{name}": value for name, value in fields.items()}
    return {name: param_text(value) for name, value in values.items()}


def param_text(value: Any) -> str:
    """A value as MLflow shows it: JSON where it is no text."""
    return value if isinstance(value, str) else json.dumps(value)


def dataset_inputs(run: RunFolder) -> list["DatasetInput"]:
    """The splits as MLflow dataset inputs: where they come from, how much they hold, a digest.

    Empty where the shards are gone.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    config, shards = run.config, run.shards
    if shards is None:
        return []
    source = run.root.source(shards.source_key)
    inputs = []
    for name, text, held in _texts(config, shards):
        part = source.parts.get(name) if source and name else source
        dataset = part.dataset if part else text.path or text.source
        where = {"path": dataset, "uri": dataset, "revision": part.revision if part else None}
        where |= {"part": name} if name else {}
        for split, context in (("train", "training"), ("val", "validation")):
            files, counts = held[split]
            title = Path(public_uri(dataset)).name or config.recipe
            entity = Dataset(
                name=f"{name}: {title}" if name else title,
                digest=storage.sha256_json([shards.files[file].sha256 for file in files])[:32],
                source_type={"hub": "hf", "files": "local", "stories": "code"}[text.source],
                source=public_uri(json.dumps(where | {"split": split})),
                profile=json.dumps(counts),
            )
            inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", context)]))
    return inputs


def _texts(
    config: PipelineConfig, shards: Shards
) -> Iterator[tuple[str, TextConfig, dict[str, tuple[list[str], dict[str, Any]]]]]:
    """Each source of shards: its name, empty of the only one, its settings, and by split its files
    and counts. The held-out documents of a mixture are in the same files.
    """
    splits = {
        split: (held.files, held.model_dump(exclude={"files"}))
        for split, held in shards.splits.items()
    }
    if not shards.parts:
        yield "", config.data, splits
    for name, part in shards.parts.items():
        train = (part.train.files, part.train.model_dump(exclude={"files"}))
        val = (shards.splits["val"].files, part.val.model_dump())
        text = config.data.sources.get(name, config.data)
        yield name, text, {"train": train, "val": val}


def description(run: Run, evaluation: Evaluation) -> str:
    """A run's result in Markdown, shown at the top of its page."""
    return (
        f"**{evaluation.val_bpb:.4f} bits per byte** on {evaluation.documents:,} held-out "
        f"documents, by `{evaluation.checkpoint}`. The report is `report/index.html` in the "
        "artifacts.\n\n"
        f"```\nslm lineage {run.name}\nslm sample {run.name}\n```"
    )


def benchmark_metrics(score: TaskScore) -> dict[str, float]:
    """The figures of a task by their metrics' names, such as `benchmark.blimp.accuracy`."""
    figures = {
        "accuracy": score.accuracy,
        "stderr": score.stderr,
        "chance": score.chance,
        "accuracy_per_byte": score.accuracy_per_byte,
        "bits_per_byte": score.bits_per_byte,
    }
    return {
        f"benchmark.{score.name}.{name}": value
        for name, value in figures.items()
        if value is not None
    }


def run_tags(run: Run) -> dict[str, str]:
    environment = {
        f"environment.{name}": param_text(value)
        for name, value in run.environment.items()
        if value is not None
    }
    tags = {
        "slm.shards_key": run.shards_key,
        "slm.determinism_level": run.level,
        "slm.best": run.best,
        "slm.weights_sha256": run.weights_sha256,  # last: it marks the results as sent
    }
    with suppress(CorruptionError):  # its settings are not here
        if derived := RunFolder.of(run).settings.derived:
            tags = {"slm.made_from": derived.text, **tags}
        if parent := RunFolder.of(run).parent_record:
            tags = {"slm.parent": parent.model, "slm.parent_sha256": parent.key, **tags}
    commit = run.environment.get("commit")
    return environment | ({"mlflow.source.git.commit": str(commit)} if commit else {}) | tags


def checkpoint_tags(checkpoint: Checkpoint, run: Run) -> dict[str, str]:
    names = {"best": run.best, "last": run.last}
    roles = [role for role, name in names.items() if name == checkpoint.name]
    return {
        "slm.step": str(checkpoint.step),
        "slm.role": ", ".join(roles),
        "slm.weights_sha256": checkpoint.weights_sha256,
        "slm.tokenizer_sha256": checkpoint.tokenizer_sha256,
        "slm.shards_key": checkpoint.shards_key,
    }
