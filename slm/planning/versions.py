"""The version of a stage that an existing result was made with, by the key that it gives."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

import slm.evaluation.benchmark.identity
import slm.evaluation.identity
import slm.report.identity
import slm.source.download
import slm.tokens.encode
import slm.tokens.vocabulary
import slm.training.identity
from slm.config import PipelineConfig
from slm.errors import SlmError
from slm.planning.results import Result
from slm.records import Benchmarks, Evaluation, Shards, Source, Vocabulary
from slm.run_folder import DataRoot, RunFolder
from slm.source.files import find_files


def version_change(
    stage: str, result: Result, config: PipelineConfig, root: DataRoot
) -> tuple[int, int] | None:
    """The version that a result was made with and today's; None where they are the same.

    None too where no version gives its key, as of settings that were not all recorded.
    """
    today = {
        "download": slm.source.download.DOWNLOAD_VERSION,
        "tokenizer": slm.tokens.vocabulary.TOKENIZER_VERSION,
        "encode": slm.tokens.encode.ENCODE_VERSION,
        "mix": slm.tokens.encode.ENCODE_VERSION,
        "train": slm.training.identity.TRAIN_VERSION,
        "evaluate": slm.evaluation.identity.EVALUATE_VERSION,
        "benchmark": slm.evaluation.benchmark.identity.BENCHMARK_VERSION,
        "report": slm.report.identity.REPORT_VERSION,
    }[stage]
    with suppress(SlmError, OSError, ValidationError):
        old = with_settings(config, {"recipe": result.recipe, **result.settings})
        for version in range(today, 0, -1):
            if result.record.key in _keys(stage, result, old, root, version):
                return (version, today) if version != today else None
    return None


def with_settings(config: PipelineConfig, settings: Mapping[str, Any]) -> PipelineConfig:
    """A config with other values of some settings. Raises ValidationError."""
    fields = config.model_dump(mode="json")
    for name, value in settings.items():
        *path, last = name.split(".")
        place = fields
        for part in path:
            place = place[part]
        place[last] = value
    return PipelineConfig.model_validate(fields, context={"stored": True})


def _keys(
    stage: str, result: Result, config: PipelineConfig, root: DataRoot, version: int
) -> Iterable[str]:
    """The keys that a result would have, made with a version of its stage."""
    record = result.record
    if isinstance(record, Source):
        return _source_keys(record, config, version)
    if isinstance(record, Vocabulary):
        source = root.source(record.source_key)
        if source is None:  # given: its key has the hash of its file
            return [record.key]
        return [slm.tokens.vocabulary.trained_key(config, source, version)]
    if isinstance(record, Shards):
        source = root.source(record.source_key)
        tokenizers = (None, record.tokenizer_sha256)
        encode_key = slm.tokens.encode.encode_key
        return [encode_key(config, source, t, version) for t in tokenizers] if source else ()
    if stage == "train":
        shards, settings = root.shards(result.inputs), RunFolder(result.path).settings
        identity = slm.training.identity
        if shards is None:
            return ()
        return identity.run_keys(
            config, identity.run_inputs(shards, settings.parent_key, settings.derived), version
        )
    run = RunFolder(result.path.parent)
    if isinstance(record, Evaluation):
        shards_key = run.settings.shards_key
        return [
            slm.evaluation.identity.evaluate_key(config, record.weights_sha256, shards_key, version)
        ]
    if isinstance(record, Benchmarks):
        return [record.key]  # of the only version so far
    trained, evaluation = run.record, run.evaluation
    if trained is None or evaluation is None:
        return ()
    return [slm.report.identity.report_key(config, trained, evaluation, version=version)]


def _source_keys(source: Source, config: PipelineConfig, version: int) -> Iterable[str]:
    download = slm.source.download
    if config.data.source == "stories":
        return [download.stories_key(config, version)]
    if config.data.source == "hub":
        return download.hub_keys(config, source.revision, version)
    base, layout = find_files(config.data)
    return [download.files_key(config, base, layout.files, source.origin, version)]
