"""One stage of a plan, and the settings that a stage's result can depend on."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from slm import keys
from slm.config import PipelineConfig
from slm.planning.results import Changed
from slm.records import Frozen

Action = Literal["reused", "to pull", "resumed", "to run", "refused"]
UNEXPLAINED = "no recorded setting differs: another slm made the nearest result"


def _of_mixture(stage: str, config: PipelineConfig) -> tuple[str, ...]:
    """The names of its sources, and what a stage reads of each; nothing of any other config."""
    return ("data.sources", *keys.names_of_sources(stage, config)) if config.data.sources else ()


OWN: dict[str, Callable[[PipelineConfig], tuple[str, ...]]] = {
    "download": lambda config: (
        _of_mixture("download", config) or keys.names_of("download", config.data.source)
    ),
    "tokenizer": lambda config: (
        (*keys.names_of("tokenizer"), *_of_mixture("encode", config), *_trimmed(config))
        if config.data.makes_vocabulary
        else ()
    ),
    "encode": lambda config: (*keys.names_of("encode"), *keys.names_of("tokenizer")),
    "mix": lambda config: (
        "data.shard_tokens",
        "data.vocab_size",
        *keys.names_of("tokenizer"),
        *_of_mixture("encode", config),
    ),
    "train": lambda config: (
        *keys.names_of("train"),
        *keys.names_of_sources("train", config),
        *keys.process_settings(config),
        *keys.names_of("select"),
    ),
    "evaluate": lambda config: keys.names_of("evaluate"),
    "benchmark": lambda config: keys.names_of("benchmark") if config.benchmark.tasks else (),
    "report": lambda config: keys.names_of("report"),
}


def _trimmed(config: PipelineConfig) -> tuple[str, ...]:
    return () if config.data.tokenizer.is_set else ("data.vocab_size",)


class Stage(Frozen):
    """What a run would do at a stage, and why."""

    stage: str
    part: str | None = None  # the source of a mixture that it is of; None: it is of all
    action: Action
    key: str | None = None  # None: not known before an earlier stage has run
    result: str | None = None  # the folder of the result, or the version
    nearest: str | None = None  # the existing result that differs the least
    changed: Changed = Field(default_factory=dict)  # the settings in which it differs: old, new
    version: tuple[int, int] | None = None  # of the stage, where it went up since
    reasons: tuple[str, ...] = ()
    assumed: bool = False  # it rests on what was not read: files by size and time, a branch
    step: int | None = None  # from which a training is resumed
    max_steps: int | None = None  # its last step, where that is fixed
    seconds: float | None = None  # estimated; None: unknown
    seconds_from: str = ""  # what the estimate rests on
    tokens: int | None = None  # that a training has left to train on; None: unknown
    memory_bytes: int | None = None  # of a training process
    memory_from: str = ""
    disk_bytes: int | None = None  # that its result takes

    @property
    def title(self) -> str:
        """`encode`, or `encode wiki` of one source of a mixture."""
        return f"{self.stage} {self.part}" if self.part else self.stage


def after(stage: str) -> str:
    """The reason of a stage that waits for an earlier one."""
    return f"after {stage}: its key is not known until then"
