"""The config of a pipeline: every section, and what a run and its model are called."""

import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from slm.config.data import GPT2_VOCAB_SIZE, DataConfig
from slm.config.documents import TextConfig
from slm.config.evaluate import BenchmarkConfig, EvaluateConfig
from slm.config.model import ModelConfig
from slm.config.registry import RegistryConfig
from slm.config.report import ReportConfig
from slm.config.retrain import RetrainConfig
from slm.config.setting import NAME, PositiveInt, Section, setting
from slm.config.train import TrainConfig

DEFAULT_RECIPE = "quickstart"
_DATA_SUFFIXES = re.compile(
    r"(\.(parquet|arrow|jsonl?|ndjson|csv|tsv|txt|text|md|rst|log|gz|zst))+$", re.IGNORECASE
)


class PipelineConfig(Section):
    """Everything that a pipeline's results depend on, and where they go."""

    recipe: str = Field(pattern=NAME, description="Name in pipelines.yaml.")
    name: str | None = setting(
        None,
        "Name of the run, which its folders begin with, and of its registered model. {data}: that "
        "of the data's file, folder or dataset. null: the folders have the recipe's name, the "
        "model that of the data.",
        pattern=NAME,
    )
    size: str | None = setting(
        None,
        "Parameters inside the blocks, such as 300K or 10M, from which the shape, the rates, the "
        "batch and the tokens are derived where they are not stated; null: nothing is.",
        min_length=1,
    )
    depth: PositiveInt | None = setting(
        None, "Blocks, of 64 times as many wide, from which the same is derived; or give size."
    )
    data: DataConfig = Field(DataConfig(), description=DataConfig.__doc__)
    model: ModelConfig = Field(ModelConfig(), description=ModelConfig.__doc__)
    train: TrainConfig = Field(description=TrainConfig.__doc__)
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description=EvaluateConfig.__doc__)
    benchmark: BenchmarkConfig = Field(BenchmarkConfig(), description=BenchmarkConfig.__doc__)
    report: ReportConfig = Field(ReportConfig(), description=ReportConfig.__doc__)
    registry: RegistryConfig = Field(RegistryConfig(), description=RegistryConfig.__doc__)
    retrain: RetrainConfig = Field(RetrainConfig(), description=RetrainConfig.__doc__)

    @model_validator(mode="after")
    def _vocabulary_comes_with_the_weights(self) -> Self:
        if self.train.init_from and self.data.tokenizer.is_set:
            raise ValueError(
                f"train.init_from={self.train.init_from}: a model keeps the vocabulary that it was "
                "trained with: leave out data.tokenizer, or train from the seed"
            )
        return self

    @model_validator(mode="after")
    def _batch_is_whole_rows(self) -> Self:
        if self.train.init_from and "seq_len" not in self.model.model_fields_set:
            return self  # the context is that of the weights
        if self.train.tokens_per_step % self.model.seq_len:
            raise ValueError(
                f"train.tokens_per_step={self.train.tokens_per_step} is not a multiple of "
                f"model.seq_len={self.model.seq_len}"
            )
        return self

    @property
    def folder_name(self) -> str:
        """What the names of its folders begin with; no result depends on it."""
        return self.name or self.recipe

    def of_source(self, name: str) -> "PipelineConfig":
        """The config of one source of a mixture alone, whose folders are named after it.

        Its vocabulary is whole: a trimmed one is of the mixture, and given to its encoding.
        """
        text = {key: getattr(self.data.sources[name], key) for key in TextConfig.model_fields}
        alone: dict[str, Any] = {"sources": {}, "phases": (), "vocab_size": GPT2_VOCAB_SIZE}
        return self.model_copy(update={
            "name": name, "data": self.data.model_copy(update=text | alone),
        })  # fmt: skip

    def with_revisions(self, revisions: dict[str, str]) -> "PipelineConfig":
        """The config of a mixture with the commits of its sources that are on the hub."""
        sources = {
            name: text.model_copy(update={"revision": revisions.get(name)})
            if text.source == "hub"
            else text
            for name, text in self.data.sources.items()
        }
        data = self.data.model_copy(update={"sources": sources})
        return self.model_copy(update={"data": data})

    @property
    def model_name(self) -> str:
        """The registered model's name: `registry.model`, `name`, else that of the data.

        It is the recipe's where the data are a mixture or have no usable name, and slm for the
        generated stories.
        """
        if given := self.registry.model or self.name:
            return given
        if self.data.sources:
            return self.recipe
        return "slm" if self.data.source == "stories" else data_name(self.data.path) or self.recipe


def data_name(path: str) -> str:
    """A name made from `data.path`: the last part that is no pattern, without its suffixes.

    articles.jsonl.zst → articles, notes/*.txt → notes, OWNER/DATASET → DATASET; empty where
    nothing usable is left.
    """
    parts = [part for part in Path(path).parts if not re.search(r"[*?\[]", part)]
    name = _DATA_SUFFIXES.sub("", parts[-1]) if parts else ""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:64]
