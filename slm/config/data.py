"""Settings of the data: one source or a mixture, and how it becomes tokens."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from slm.config.documents import SourceConfig, TextConfig
from slm.config.setting import Fraction, Section, setting
from slm.config.tokenizer import TokenizerConfig
from slm.errors import listing

GPT2_VOCAB_SIZE = 50_257
# Of a mixture: part of dotted keys and file names.
SOURCE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
SOURCE_NAME_RULE = "at most 32 letters, digits, '_' and '-', the first a letter or a digit"

_HOST_PORT = r"([^\s/@:\[\]]+|\[[0-9a-fA-F:]+\]):\d{1,5}"
# What an address of each kind of cluster looks like, and an example.
_RUNNER_ADDRESSES = {
    "dask": (rf"(tcp|tls|wss?)://{_HOST_PORT}", "tcp://HOST:8786"),
    "ray": (rf"(ray://)?{_HOST_PORT}", "ray://HOST:10001"),
}


class Phase(Section):
    """The weights of a mixture up to a fraction of the training."""

    until: Fraction = setting(1.0, "Fraction of the steps at which the phase ends.", gt=0)
    weights: dict[str, Annotated[float, Field(ge=0)]] = setting(
        {}, "Weights by the name of the source; one that is not named keeps its own."
    )


class DataConfig(TextConfig):
    """Where the documents come from, and how they become tokens."""

    vocab_size: int = setting(
        GPT2_VOCAB_SIZE,
        "Tokens in the vocabulary: GPT-2's, trimmed to the data where it is smaller.",
        ge=257,
        le=GPT2_VOCAB_SIZE,
    )
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description=TokenizerConfig.__doc__)
    shard_tokens: int = setting(  # a shard's header is int32
        100_000_000, "Tokens per shard file.", gt=0, lt=2**31
    )
    workers: int = setting(0, "Encoding processes; 0: one per core. The shards are the same.", ge=0)
    runner: Literal["local", "dask", "ray"] = setting(
        "local",
        "What encodes: processes of this machine, or the workers of a Dask or Ray cluster (the "
        "extras dask and ray). The shards are the same.",
    )
    runner_address: str = setting(
        "",
        "Address of the cluster, tcp://HOST:8786 (Dask) or ray://HOST:10001; empty: one of "
        "data.workers processes is started on this machine, and closed at the end.",
    )

    sources: dict[Annotated[str, Field(pattern=SOURCE_NAME)], SourceConfig] = setting(
        {},
        "A mixture: sources by name, each with the settings of one (source, path, clean, …), its "
        "weight, max_epochs and license.",
        json_schema_extra={
            "words": "sources by name, such as {wiki: {source: files, path: wiki.jsonl, weight: "
            "0.7}}"
        },
    )
    phases: tuple[Phase, ...] = setting(
        (),
        "Weights of the sources that change during the training, such as {until: 0.8, weights: "
        "{wiki: 0.3}}, the last one until 1; empty: the sources' own to the end.",
        json_schema_extra={
            "words": "list of phases, such as [{until: 0.8, weights: {wiki: 0.3}}, {until: 1}]"
        },
    )

    @field_validator("sources")
    @classmethod
    def _in_order(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        """The sources by name, however they were written: the order decides of their duplicates."""
        by_case: dict[str, str] = {}
        for name in sources:
            if (other := by_case.setdefault(name.casefold(), name)) != name:
                raise ValueError(
                    f"data.sources has {other} and {name}: their files would have the same names "
                    "on some disks; give one another name"
                )
        return dict(sorted(sources.items()))

    @model_validator(mode="after")
    def _mixture_is_whole(self) -> Self:
        if self.phases and not self.sources:
            raise ValueError("data.phases has weights of data.sources, and there are none")
        if not self.sources:
            return self
        for key, field in TextConfig.model_fields.items():
            if getattr(self, key) != field.default:
                name = next(iter(self.sources))
                raise ValueError(
                    f"data.{key} is of one dataset, and data.sources has {listing(self.sources)}: "
                    f"state it of each source, such as data.sources.{name}.{key}"
                )
        self._check_phases()
        return self

    def _check_phases(self) -> None:
        """Raises ValueError for phases that do not follow each other, or that train on nothing."""
        before = 0.0
        for phase in self.phases:
            if phase.until <= before:
                raise ValueError(
                    f"data.phases: until={phase.until:g} follows until={before:g}: each phase ends "
                    "later than the one before it"
                )
            before = phase.until
            if others := [name for name in phase.weights if name not in self.sources]:
                raise ValueError(
                    f"data.phases has a weight of {others[0]}, which is no source: there are "
                    f"{listing(self.sources)}"
                )
            if not any(phase.weights.get(name, 1) for name in self.sources):
                raise ValueError(
                    f"data.phases: every weight until={phase.until:g} is 0: nothing is left to "
                    "train on"
                )
        if self.phases and before != 1:
            raise ValueError(
                f"data.phases end at until={before:g}: the last one ends at 1, the end of the "
                "training"
            )

    @model_validator(mode="after")
    def _address_is_of_the_runner(self) -> Self:
        pattern, example = _RUNNER_ADDRESSES.get(self.runner, ("", ""))
        if self.runner_address and not re.fullmatch(pattern or ".*", self.runner_address):
            raise ValueError(
                f"data.runner_address={self.runner_address!r} is no address of a {self.runner} "
                f"cluster, such as {example}; empty: a cluster is started on this machine"
            )
        return self

    @property
    def expected_vocab_size(self) -> int:
        """Tokens of the vocabulary, as far as settings tell: of a given one it is not known."""
        return self.tokenizer.vocab_size if self.tokenizer.train else self.vocab_size

    @property
    def dataset_name(self) -> str:
        """What the data are, where no source is here whose record has it."""
        alone = self.source if self.source == "stories" else self.path
        return " + ".join(self.sources) or alone or self.source

    @property
    def makes_vocabulary(self) -> bool:
        """Whether a stage of its own makes the vocabulary: one's own, or the trimmed one of a
        mixture, which belongs to the union of its sources.
        """
        trims = bool(self.sources) and self.vocab_size < GPT2_VOCAB_SIZE
        return self.tokenizer.is_set or trims

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Self:
        if self.tokenizer.is_set and self.vocab_size != GPT2_VOCAB_SIZE:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} trims GPT-2's vocabulary, and data.tokenizer "
                "is another: leave data.vocab_size out (data.tokenizer.vocab_size is the size of "
                "a trained one)"
            )
        return self
