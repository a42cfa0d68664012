"""Finished results of a config, with the records and keys that the stages give, but no content."""

from pathlib import Path
from typing import Any

from slm import keys, storage
from slm.config import PipelineConfig
from slm.evaluation.benchmark.identity import benchmark_folder, benchmark_key
from slm.evaluation.benchmark.tasks import read_tasks
from slm.evaluation.identity import evaluate_key, evaluation_folder
from slm.records import (
    Benchmarks,
    Checkpoint,
    Evaluation,
    Plan,
    Report,
    Run,
    Shards,
    ShardSplit,
    Source,
    SourceSplit,
    Version,
)
from slm.registry.tags import chain_tags, ingredients, register_key
from slm.report.identity import report_folder, report_key
from slm.run_folder import CHECKPOINTS, DataRoot, RunFolder, Settings, checkpoint_name
from slm.source import seen
from slm.source.download import files_key, generator_version, hub_keys, stories_key
from slm.source.files import find_files
from slm.source.hub import is_commit
from slm.tokens.encode import encode_key
from slm.tracking.server import recorded_uri, tracking_uri
from slm.training.identity import run_inputs, run_keys

STEPS = 1000
COMMIT = "4" * 40
PLAN = Plan(
    max_steps=STEPS, rows=8, micro_batch_size=8, world_size=1, device="cpu", precision="fp32",
    threads=1, compile=False,
)  # fmt: skip


def finish(root: Path, config: PipelineConfig) -> RunFolder:
    """Put a finished result of every stage into a data folder, and the note of a version."""
    source = finish_source(root, config)
    shards = finish_shards(root, config, source)
    run = finish_run(root, config, shards)
    record = run.record
    assert record is not None
    evaluation = finish_evaluation(config, record, shards)
    if config.benchmark.tasks:
        finish_benchmark(config, record)
    report = finish_report(config, record, evaluation)
    register(root, config, record, shards, evaluation, report)
    return run


def finish_source(root: Path, config: PipelineConfig) -> Source:
    data, origin = config.data, {}
    revision = generator_version()
    if data.source == "stories":
        key = stories_key(config)
    elif data.source == "hub":
        revision = str(data.revision) if is_commit(data.revision) else COMMIT
        key = hub_keys(config, revision)[0]
    else:
        base, layout = find_files(data)
        paths = [path for each in layout.files.values() for path in each]
        digests = {path: storage.sha256_file(path) for path in paths}
        seen.remember(root, digests, seen.stamps(paths))
        origin = {path.relative_to(base).as_posix(): digest for path, digest in digests.items()}
        revision, key = storage.sha256_json(origin), files_key(config, base, layout.files, origin)

    def build(staging: Path) -> Source:
        name = "train_00000.parquet"
        (staging / name).write_text(f"documents {key}")
        split = SourceSplit(files=[name], documents=100_000, bytes=10_000_000)
        dataset = data.path or "stories"
        return Source(
            key=key, dataset=dataset, revision=revision, splits={"train": split}, origin=origin,
            notes=[],
        )  # fmt: skip

    folder = DataRoot(root).folder("sources", config.recipe, key)
    return storage.run_stage(folder, Source, key, build, keys.made("download", config))


def finish_shards(root: Path, config: PipelineConfig, source: Source) -> Shards:
    key = encode_key(config, source, None)

    def build(staging: Path) -> Shards:
        splits = {}
        for split, documents in (("train", 99_000), ("val", 1000)):
            name = f"{split}_00000.bin"
            (staging / name).write_text(f"tokens {key}")
            size = {"documents": documents, "tokens": 100 * documents, "bytes": 400 * documents}
            splits[split] = ShardSplit(files=[name], **size)
        tokenizer, vocab_size = "3" * 64, config.data.vocab_size
        return Shards(
            key=key, source_key=source.key, tokenizer_sha256=tokenizer, vocab_size=vocab_size,
            eot=vocab_size - 1, splits=splits,
        )  # fmt: skip

    folder = DataRoot(root).folder("shards", config.recipe, key)
    return storage.run_stage(folder, Shards, key, build, keys.made("encode", config))


def start_run(
    root: Path, config: PipelineConfig, shards: Shards, *, former: bool = False
) -> RunFolder:
    """A run with its settings, plan and journal. `former`: by a key that had the cadence."""
    key = run_keys(config, run_inputs(shards, None))[former]
    run = RunFolder(DataRoot(root).folder("runs", config.recipe, key))
    (run.path / CHECKPOINTS).mkdir(parents=True)
    run.write_settings(Settings(key, config, shards.key, None))
    run.write_plan(PLAN)
    lines = [
        {"event": "evaluate", "time": 1.0, "step": step, "val_bpb": 1 / step}
        for step in range(10, STEPS + 1, 10)
        if step % config.train.evaluate_every == 0 or step == STEPS
    ]
    text = "".join(storage.to_json(line) + "\n" for line in lines)
    (run.path / "metrics.jsonl").write_text(text)
    return run


def save(run: RunFolder, step: int) -> Checkpoint:
    """Add a checkpoint to a run."""
    settings, folder = run.settings, run.path / CHECKPOINTS / checkpoint_name(step)
    staging = folder.with_name(f"{folder.name}.tmp")
    staging.mkdir()
    (staging / "model.safetensors").write_text(f"{settings.key} {step}")
    checkpoint = Checkpoint(
        key=storage.sha256_json([settings.key, step]), step=step, tokens=step,
        config_sha256=keys.config_sha256(settings.config), shards_key=settings.shards_key,
        tokenizer_sha256="3" * 64, parent_sha256=None, train_loss=1.0,
    )  # fmt: skip
    return storage.commit(staging, folder, checkpoint)


def finish_run(
    root: Path, config: PipelineConfig, shards: Shards, *, former: bool = False
) -> RunFolder:
    run = start_run(root, config, shards, former=former)
    last = save(run, STEPS)
    record: dict[str, Any] = {"train_loss": 1.0, "val_loss": 1.0, "val_bpb": 1.0, "level": "C"}
    storage.write_record(
        run.path,
        Run(
            key=run.settings.key, shards_key=shards.key, best=last.name, last=last.name,
            step=STEPS, tokens=STEPS, tok_per_sec=1000.0, seconds=1.0, parameters=1,
            weights_sha256=last.weights_sha256, **record,
        ),
    )  # fmt: skip
    return run


def finish_evaluation(config: PipelineConfig, run: Run, shards: Shards) -> Evaluation:
    checkpoint = RunFolder.of(run).checkpoint(run.checkpoint(config.evaluate.checkpoint).name)
    assert checkpoint is not None
    key = evaluate_key(config, checkpoint.weights_sha256, shards.key)

    def build(staging: Path) -> Evaluation:
        (staging / "evaluation.json").write_text(f"scores {key}")
        return Evaluation(
            key=key, run=run.name, checkpoint=checkpoint.name,
            weights_sha256=checkpoint.weights_sha256, documents=1, tokens=1, bytes=1,
            val_loss=1.0, val_bpb=1.0,
        )  # fmt: skip

    folder = evaluation_folder(config, run, key)
    return storage.run_stage(folder, Evaluation, key, build, keys.made("evaluate", config))


def finish_benchmark(config: PipelineConfig, run: Run) -> Benchmarks:
    """Of a run's own tasks, without their scores."""
    checkpoint = RunFolder.of(run).checkpoint(run.checkpoint(config.evaluate.checkpoint).name)
    assert checkpoint is not None
    tasks = read_tasks(config.benchmark.tasks)
    key = benchmark_key(config, tasks, checkpoint.weights_sha256, run.shards_key)

    def build(staging: Path) -> Benchmarks:
        (staging / "benchmarks.json").write_text(f"scores {key}")
        return Benchmarks(
            key=key, run=run.name, checkpoint=checkpoint.name,
            weights_sha256=checkpoint.weights_sha256, tasks=(),
        )  # fmt: skip

    folder = benchmark_folder(config, run, key)
    return storage.run_stage(folder, Benchmarks, key, build, keys.made("benchmark", config))


def finish_report(config: PipelineConfig, run: Run, evaluation: Evaluation) -> Report:
    benchmarks = RunFolder.of(run).benchmarks_of(evaluation.weights_sha256)
    key = report_key(config, run, evaluation, benchmarks)

    def build(staging: Path) -> Report:
        (staging / "index.html").write_text(f"report {key}")
        return Report(key=key, run=run.name)

    folder = report_folder(config, run, evaluation, key, benchmarks)
    return storage.run_stage(folder, Report, key, build, keys.made("report", config))


def register(
    root: Path, config: PipelineConfig, run: Run, shards: Shards, evaluation: Evaluation,
    report: Report,
) -> None:  # fmt: skip
    """Leave the note of a version, and an empty file where the registry is."""
    checkpoint = RunFolder.of(run).checkpoint(evaluation.checkpoint)
    assert checkpoint is not None
    tags = chain_tags(ingredients(config, run, checkpoint, evaluation, report, shards))
    uri = tracking_uri(config, root)
    version = Version(
        key=register_key(config, tags, root), model=config.model_name, version="1", aliases=[],
        run_id="f00", tracking_uri=recorded_uri(uri, root),
    )  # fmt: skip
    storage.write_json(run.path / "registered.json", version.model_dump(mode="json"))
    (root / "mlflow").mkdir(exist_ok=True)
    (root / "mlflow" / "mlflow.db").touch()
