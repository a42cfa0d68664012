"""The one config object with its defaults, and the folders of a project.

Recipes, which state only what differs from the defaults, are read by `slm.recipes`.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from slm.errors import UserError, check_utf8, excerpt, listing
from slm.figures import two_lines

PIPELINES = "pipelines.yaml"  # of a project: its recipes and deployments
GPT2_VOCAB_SIZE = 50_257
DEFAULT_RECIPE = "quickstart"
LIMITS = ("max_steps", "max_tokens", "max_seconds", "epochs")
MAX_SEED = 2**63 - 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_RULE = "at most 64 letters, digits, '_', '.' and '-', the first a letter or a digit"
ENDPOINT = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9_.-]*)(:[0-9]{1,5})?"  # HOST:PORT
FUNCTION = r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$"
# Of a mixture: part of dotted keys and file names.
SOURCE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
SOURCE_NAME_RULE = "at most 32 letters, digits, '_' and '-', the first a letter or a digit"
SEED_ERROR = "seed"  # pydantic's type of the error
SEED_RULE = "a seed is a whole number from 0 to 2**63 - 1"
_DATA_SUFFIXES = re.compile(
    r"(\.(parquet|arrow|jsonl?|ndjson|csv|tsv|txt|text|md|rst|log|gz|zst))+$", re.IGNORECASE
)

_HOST_PORT = r"([^\s/@:\[\]]+|\[[0-9a-fA-F:]+\]):\d{1,5}"
# What an address of each kind of cluster looks like, and an example.
_RUNNER_ADDRESSES = {
    "dask": (rf"(tcp|tls|wss?)://{_HOST_PORT}", "tcp://HOST:8786"),
    "ray": (rf"(ray://)?{_HOST_PORT}", "ray://HOST:10001"),
}

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weights = Literal["float32", "int8"]  # that a model is sampled with
T = TypeVar("T")


def _check_seed(seed: int, info: ValidationInfo) -> int:
    """Refuse what is no seed, except in the config of a run that exists already."""
    if not 0 <= seed <= MAX_SEED and not (info.context or {}).get("stored"):
        raise PydanticCustomError(SEED_ERROR, SEED_RULE)
    return seed


Seed = Annotated[int, AfterValidator(_check_seed)]


def setting(default: T, text: str, **limits: Any) -> T:
    """A setting's default, the text that explains it, and the limits of its value."""
    field: T = Field(default, description=text, **limits)
    return field


class Section(BaseModel):
    """A part of the config: frozen, and without room for a misspelt key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    def __repr__(self) -> str:
        """Two lines of what differs from the defaults; `flat()` has every setting."""
        stated = self.model_dump(mode="json", exclude_defaults=True)
        values = {
            f"{name}.{key}" if isinstance(value, dict) else name: inner
            for name, value in stated.items()
            for key, inner in (value.items() if isinstance(value, dict) else [(name, value)])
        }
        return two_lines(type(self).__name__, values)

    __str__ = __repr__

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key, such as `train.max_steps`, as JSON values."""
        values = self.model_dump(mode="json")
        settings: dict[str, Any] = {}
        for name, value in values.items():
            section = getattr(self, name)
            if isinstance(section, Section):
                settings |= {f"{name}.{key}": v for key, v in section.flat().items()}
            else:
                settings[name] = value
        return settings


class CleanConfig(Section):
    """What is repaired or dropped before encoding; every change is counted in the manifest."""

    fix_text: bool = setting(
        False, "Repair mojibake and normalise Unicode to NFC, by ftfy (the extra clean)."
    )
    min_chars: int = setting(1, "Drop documents of fewer characters.", ge=0)
    max_chars: PositiveInt | None = setting(None, "Drop documents of more characters.")
    exact_duplicates: Literal["across_splits", "everywhere"] = setting(
        "across_splits",
        "Which exact duplicates are dropped: those of train that are in val too, or every second "
        "copy.",
    )
    near_duplicates: Fraction | None = setting(
        None,
        "Drop documents whose MinHash similarity to an earlier one is at least this (the extra "
        "clean); null keeps them.",
    )
    map: str | None = setting(
        None,
        "FILE.py:FUNCTION of one's own, which makes of a document's text another one, or None to "
        "drop it; before filter and lengths. In a recipe relative to the folder of its "
        "pipelines.yaml; only a file that this names is ever run.",
        pattern=FUNCTION,
    )
    filter: str | None = setting(
        None,
        "FILE.py:FUNCTION of one's own, which returns whether a document is kept, by its text; as "
        "map. Either takes (text), or (text, columns): a dict of data.columns.",
        pattern=FUNCTION,
    )

    @property
    def changes_text(self) -> bool:
        """Whether documents may be encoded otherwise than they came."""
        return self.fix_text or self.map is not None


class TokenizerConfig(Section):
    """A vocabulary of one's own in place of GPT-2's: trained on the train split, or given."""

    train: Literal["bpe"] | None = setting(
        None, "bpe: train a byte-level BPE on the documents of train; null: none is trained."
    )
    path: str | None = setting(
        None,
        "A given tokenizer: a tokenizer.json of Hugging Face or a .tiktoken file, or "
        "hf:ORG/NAME[@REVISION] on the hub; in a recipe relative to the folder of its "
        "pipelines.yaml. It has to be byte-level BPE.",
        min_length=1,
    )
    vocab_size: int = setting(
        8192, "Tokens of a trained vocabulary, end-of-text and special_tokens among them.", ge=257
    )
    documents: PositiveInt | None = setting(
        None, "Documents of train, the first ones, that it is trained on; null: all."
    )
    pattern: Literal["gpt2", "llama3", "qwen2", "qwen35"] = setting(
        "gpt2",
        "How text is split into words: as GPT-2, Llama 3 (digits in threes), Qwen 2 (single "
        "digits) or Qwen 3.5 (single digits, combining marks within words, as many scripts need "
        "it). Of a trained vocabulary, or of a .tiktoken file, which has none.",
    )
    special_tokens: tuple[str, ...] = setting(
        (), "Texts that are one token each wherever they are, such as <|user|>."
    )

    @property
    def is_set(self) -> bool:
        """Whether there is a vocabulary to make: else it is GPT-2's."""
        return self.train is not None or self.path is not None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.train and self.path:
            raise ValueError(
                "data.tokenizer.train and data.tokenizer.path exclude each other: train a "
                "vocabulary, or give one"
            )
        stated = sorted(self.model_fields_set - {"train", "path"})
        if not self.is_set and stated and self != TokenizerConfig():
            raise ValueError(
                f"data.tokenizer.{stated[0]} is set, but there is no vocabulary to make: set "
                "data.tokenizer.train=bpe, or data.tokenizer.path"
            )
        return self

    @model_validator(mode="after")
    def _special_tokens_are_distinct(self) -> Self:
        special = ("<|endoftext|>", *self.special_tokens)
        for i, text in enumerate(special):
            others = [other for j, other in enumerate(special) if j != i and text in other]
            if not text or others:
                raise ValueError(
                    f"data.tokenizer.special_tokens: {text!r} is "
                    + (f"part of {others[0]!r}: each has to be a text of its own" if text
                       else "empty")
                )  # fmt: skip
        if self.train and self.vocab_size < 256 + len(special):
            raise ValueError(
                f"data.tokenizer.vocab_size={self.vocab_size}: the 256 bytes, end-of-text and the "
                f"special tokens alone are {256 + len(special)}"
            )
        return self


class TextConfig(Section):
    """Where documents come from, and how they are read, cleaned and held out."""

    source: Literal["stories", "hub", "files"] = setting(
        "stories",
        "Where documents come from: the embedded story generator, the Hugging Face hub, or local "
        "files.",
    )
    path: str = setting(
        "",
        "Dataset id on the hub; a file, a folder or a glob of files, in a recipe relative to the "
        "folder of its pipelines.yaml; or an address such as s3://BUCKET/FOLDER.",
    )
    config_name: str | None = setting(None, "Configuration (subset) of a hub dataset.")
    revision: str | None = setting(None, "Branch, tag or commit on the hub; resolved to a commit.")
    train_split: str | None = setting(
        "train",
        "Name of the dataset's training split, taken exactly; the default also matches what has "
        "a name like it, or no split's name. null: everything that is not val_split.",
        min_length=1,
    )
    val_split: str | None = setting(
        "validation",
        "Name of its validation split, taken exactly; the default also matches names like it "
        "(valid, val, dev), where the dataset has any. null: none.",
        min_length=1,
    )
    text_column: str = setting(
        "text", "Column that contains the text, or a path into one, such as messages[].content."
    )
    template: str | None = setting(
        None, "Join several columns into the text, such as {title}\\n\\n{body}."
    )
    columns: tuple[str, ...] = setting(
        (),
        "Columns that are kept next to the text, such as [lang, score]: for clean.filter and "
        "clean.map, and to be seen.",
    )
    format: Literal["parquet", "arrow", "jsonl", "csv", "tsv", "text"] | None = setting(
        None, "Format of every file, whatever its name; null: by its name."
    )
    separator: str | None = setting(
        None,
        "Split a text file into documents at this text, such as \\n\\n; null: one document per "
        "file.",
        min_length=1,
    )
    documents: PositiveInt | None = setting(
        None, "Maximum number of training documents; of stories, how many to generate."
    )
    seed: Seed = setting(1337, "Random seed of the generated stories.")

    clean: CleanConfig = Field(CleanConfig(), description=CleanConfig.__doc__)
    val_fraction: Fraction = setting(
        0.01,
        "Fraction of the documents held out, chosen by document hash, where the dataset has no "
        "validation split; of a small dataset at least ten documents or a tenth.",
    )

    @field_validator("columns")
    @classmethod
    def _columns_are_distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
            raise ValueError(f"data.columns names {excerpt(repr(twice[0]))} twice")
        if "" in columns:
            raise ValueError("data.columns has an empty name")
        return columns

    @field_validator("separator")
    @classmethod
    def _as_newlines_are_read(cls, separator: str | None) -> str | None:
        return separator and separator.replace("\r\n", "\n").replace("\r", "\n")

    @model_validator(mode="after")
    def _path_is_given(self) -> Self:
        if self.source != "stories" and not self.path:
            remedy = {
                "hub": "a dataset id such as roneneldan/TinyStories",
                "files": "a file or folder",
            }
            raise ValueError(f"data.path is empty: give {remedy[self.source]} (--set data.path=…)")
        if self.source == "stories" and self.columns:
            raise ValueError(
                f"data.columns names {listing(self.columns)}, and generated stories have no "
                "columns but their text: leave it out"
            )
        return self


class SourceConfig(TextConfig):
    """One source of a mixture: its documents, and how much of the training is theirs."""

    weight: PositiveFloat = setting(
        1.0, "Share of the training's rows, relative to the weights of the other sources."
    )
    max_epochs: PositiveFloat | None = setting(
        None,
        "Passes over its training tokens after which it leaves, and its share goes to the others; "
        "null: any number.",
    )
    license: str | None = setting(None, "License of its documents, for the data card.")


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


class ModelConfig(Section):
    """The shape of the GPT. The vocabulary's size comes from the tokenizer of the shards."""

    architecture: Literal["gpt2", "qwen3"] = setting(
        "gpt2",
        "gpt2: learned positions, LayerNorm, GELU. qwen3: rotary positions, RMSNorm, SwiGLU, "
        "normalised queries and keys.",
    )
    n_layer: PositiveInt = setting(6, "Transformer blocks.")
    n_head: PositiveInt = setting(6, "Attention heads per block.")
    n_kv_head: PositiveInt | None = setting(
        None, "Key and value heads (grouped-query attention; qwen3 only); null: n_head."
    )
    n_embd: PositiveInt = setting(384, "Width of the residual stream.")
    n_inner: PositiveInt | None = setting(
        None, "Hidden width of the MLP; null: the architecture's usual one."
    )
    seq_len: PositiveInt = setting(128, "Context length in tokens.")
    dropout: float = setting(0.0, "Dropout probability in training.", ge=0, le=0.9)
    rope_theta: PositiveFloat = setting(10_000.0, "Base of the rotary frequencies (qwen3 only).")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.n_embd % self.n_head:
            pairs = 2 * self.n_head  # rotary positions need an even head width
            width = pairs * max(1, round(self.n_embd / pairs))
            at_most = min(self.n_head, self.n_embd, 1024)
            heads = next(n for n in range(at_most, 0, -1) if self.n_embd % n == 0)
            raise ValueError(
                f"model.n_embd={self.n_embd} is not a multiple of model.n_head={self.n_head}: set "
                f"model.n_head={heads}, or model.n_embd={width}"
            )
        if self.n_head % (self.n_kv_head or self.n_head):
            raise ValueError(
                f"model.n_head={self.n_head} is not a multiple of model.n_kv_head={self.n_kv_head}"
            )
        if self.n_kv_head not in (None, self.n_head) and self.architecture == "gpt2":
            raise ValueError("model.n_kv_head is for qwen3; gpt2 has as many as model.n_head")
        if self.architecture == "qwen3" and self.n_embd // self.n_head % 2:
            raise ValueError(
                "rotary positions need an even head width: model.n_embd / model.n_head"
            )
        return self


class LaunchConfig(Section):
    """Several machines (nodes) that train one run together, each by the same command.

    No result depends on it where `train.parallel` is elastic.
    """

    nnodes: str | None = setting(
        None,
        "Machines that train one run together: a number, or MIN:MAX, between which they may come "
        "and go; null: the variable PET_NNODES, else this machine alone.",
    )
    rdzv_endpoint: str | None = setting(
        None,
        "Where they meet: HOST:PORT of one of them, and after a comma that of others, should it be "
        "lost; null: PET_RDZV_ENDPOINT, else MASTER_ADDR and MASTER_PORT.",
        pattern=f"^{ENDPOINT}(,{ENDPOINT})*$",
    )
    max_restarts: int = setting(
        10,
        "How often training restarts from its last checkpoint after a process or a machine was "
        "lost.",
        ge=0,
    )
    lost_seconds: float = setting(
        60.0, "Seconds without a sign of life after which a machine is taken as lost.", ge=5
    )

    @field_validator("nnodes", mode="before")
    @classmethod
    def _node_counts(cls, value: Any) -> Any:
        if value is None:
            return None
        if node_range(str(value)) is None:
            raise ValueError(
                f"train.launch.nnodes={value}: give a number of machines, such as 2, or the fewest "
                "and the most, such as 1:4"
            )
        return str(value)


def node_range(text: str) -> tuple[int, int] | None:
    """The fewest and the most machines of `2` or `1:4`; None where it is neither."""
    numbers = re.fullmatch(r"([1-9]\d{0,5})(?::([1-9]\d{0,5}))?", text)
    if numbers is None:
        return None
    fewest, most = int(numbers[1]), int(numbers[2] or numbers[1])
    return (fewest, most) if fewest <= most else None


class TrainConfig(Section):
    """How the model is trained. Exactly one of `max_steps` … `epochs` ends it."""

    max_steps: PositiveInt | None = setting(None, "End after this many optimizer steps.")
    max_tokens: PositiveInt | None = setting(None, "End after this many tokens.")
    max_seconds: PositiveFloat | None = setting(
        None,
        "End after about this many seconds: a probe turns them into a number of steps before the "
        "first step; where schedule is wsd, the clock decides during training when the cooldown "
        "begins and how long it is.",
    )
    epochs: PositiveFloat | None = setting(
        None, "End after this many passes over the training tokens."
    )

    max_passes: PositiveFloat | None = setting(
        None,
        "At most this many passes over the training tokens, where max_steps or max_tokens would be "
        "more; null: any number.",
    )

    init_from: str | None = setting(
        None,
        "Model that the weights start from, with its vocabulary: a run, models:/NAME@ALIAS, "
        "models:/NAME/VERSION, hf:FOLDER or hf:ORG/NAME[@REVISION] of Hugging Face; its shape may "
        "be left out of model. null: from the seed.",
        min_length=1,
    )

    document_mask: bool = setting(
        False,
        "Whether attention ends at end-of-text, so that a token sees its own document alone; "
        "positions count on through the row.",
    )
    rows: Literal["windows", "documents"] = setting(
        "windows",
        "Where the rows of training begin: windows, at any token, next to each other; documents, "
        "where the first document begins in a window, if any does.",
    )

    tokens_per_step: PositiveInt = setting(
        16_384, "Tokens per optimizer step: the global batch, over all devices."
    )
    micro_batch_size: PositiveInt | Literal["auto"] = setting(
        "auto",
        "Rows per device per forward pass, the last one padded; auto: chosen before step 1.",
    )
    micro_batches: PositiveInt | Literal["auto"] = setting(
        "auto",
        "Parts of a step's rows whose gradients are summed in a fixed tree where parallel is "
        "elastic: as many processes can work, and any number gives the same bits; auto: 1 on a "
        "CPU, up to 8 on GPUs.",
    )

    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "adamw, or muon for the matrices with AdamW for the rest."
    )
    learning_rate: PositiveFloat = setting(
        6e-4,
        "Peak learning rate of AdamW; where optimizer is muon, of AdamW's part alone: embeddings "
        "and norms.",
    )
    muon_learning_rate: PositiveFloat = setting(
        0.02,
        "Peak learning rate of the matrices where optimizer is muon; learning_rate is that of the "
        "rest.",
    )
    beta1: float = setting(0.9, "AdamW's decay rate of the first moment.", ge=0, lt=1)
    beta2: float = setting(0.95, "AdamW's decay rate of the second moment.", ge=0, lt=1)
    weight_decay: float = setting(0.1, "Decoupled weight decay of the matrices.", ge=0)
    grad_clip: PositiveFloat | None = setting(
        1.0, "Maximum norm of the gradient; null: not clipped."
    )

    schedule: Literal["cosine", "wsd", "linear"] = setting(
        "cosine",
        "Learning rate after the warmup: cosine or linear decay, or wsd (constant, then linear "
        "decay).",
    )
    warmup: Fraction = setting(0.05, "Warmup, as a fraction of the steps.")
    cooldown: Fraction = setting(0.2, "Decay of wsd, as a fraction of the steps.")
    final_lr: Fraction = setting(0.1, "Learning rate at the end, as a fraction of the peak.")

    seed: Seed = setting(1337, "Random seed of weights, order and dropout.")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto",
        "Device to train on; auto: CUDA where there is one, else the GPU of an Apple computer "
        "(mps), else the CPU.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto", "Precision of the forward pass; auto: chosen for the device."
    )
    compile: bool | Literal["auto"] = setting(
        "auto", "Whether torch.compile is used; auto: on CUDA, for long trainings."
    )
    threads: PositiveInt | Literal["auto"] = setting(
        "auto",
        "CPU threads per process, fixed before step 1; auto: the cores, divided by micro_batches "
        "where that is a number, or else by the processes.",
    )
    processes: PositiveInt | Literal["auto"] = setting(
        "auto",
        "Training processes on each machine, one per GPU, under torchrun; where parallel is "
        "elastic another number resumes the same run, else it is another run.",
    )
    parallel: Literal["elastic", "ddp", "fsdp"] = setting(
        "elastic",
        "How several processes train: elastic, the same bits for any number of them; ddp, torch's "
        "DistributedDataParallel; fsdp, its fully_shard, for models that do not fit one GPU.",
    )
    launch: LaunchConfig = Field(LaunchConfig(), description=LaunchConfig.__doc__)
    deterministic: bool = setting(True, "Deterministic CUDA kernels, at a small cost in speed.")

    evaluate_every: PositiveInt = setting(100, "Steps between evaluations.")
    evaluate_documents: PositiveInt = setting(
        64, "Held-out documents that such an evaluation scores, always the same."
    )
    checkpoint_every: PositiveInt = setting(100, "Steps between checkpoints.")
    keep_checkpoints: PositiveInt = setting(
        2,
        "Newest checkpoints to keep, besides the best, the last and, where schedule is wsd, the "
        "one before the cooldown.",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"training needs exactly one limit of {', '.join('train.' + n for n in LIMITS)}; "
                f"given: {', '.join(given) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _tree_of_elastic(self) -> Self:
        if self.parallel != "elastic" and self.micro_batches != "auto":
            raise ValueError(
                f"train.micro_batches={self.micro_batches} is for train.parallel=elastic: leave it "
                f"at auto for {self.parallel}"
            )
        return self


class EvaluateConfig(Section):
    """How a checkpoint is scored."""

    documents: PositiveInt | None = setting(
        None, "Maximum number of held-out documents to score; null: all."
    )
    checkpoint: Literal["best", "last"] = setting("best", "Checkpoint to score.")


class BenchmarkConfig(Section):
    """The tasks that the model is scored on, after its evaluation: see docs/benchmarks.md."""

    tasks: tuple[str, ...] = setting(
        (),
        "Tasks: blimp, a file or a folder of them, or NAME=WHERE, which is such a path or "
        "hf:OWNER/DATASET@COMMIT/PATH on the hub; in a recipe a path is relative to the folder of "
        "its pipelines.yaml.",
    )
    baselines: bool = setting(
        False,
        "Whether a 5-gram model of the training documents and the untrained model do the tasks "
        "too.",
    )

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [task for task in tasks if tasks.count(task) > 1]:
            raise ValueError(f"benchmark.tasks has {twice[0]!r} twice: name a task once")
        return tasks


class ReportConfig(Section):
    """The samples that the report shows: every prompt at every temperature and top_k."""

    prompts: tuple[str, ...] | None = setting(
        None, "Beginnings of the samples; null: the first words of held-out documents."
    )
    temperatures: tuple[PositiveFloat, ...] = setting((0.5, 0.8, 1.0), "Sampling temperatures.")
    top_ks: tuple[PositiveInt, ...] = setting((20, 50), "Values of top-k.")
    max_new_tokens: PositiveInt = setting(
        250, "Maximum number of new tokens per sample; most short stories are shorter."
    )
    seed: Seed = setting(1, "Random seed of the samples.")

    license: str | None = setting(
        None, "License in the model card; null: mit for the generated stories."
    )
    language: str = setting("en", "Language of the documents, for the model card.")

    judge_url: str | None = setting(
        None,
        "Address of an OpenAI-compatible API whose model grades the samples; null: none. Its key "
        "is read from SLM_JUDGE_API_KEY.",
    )
    judge_model: str = setting("", "Name of the grading model.")
    judge_seconds: PositiveFloat = setting(60.0, "Seconds to wait for one answer.")

    @model_validator(mode="after")
    def _judge_is_named(self) -> Self:
        if self.judge_url is None:
            return self
        if not re.match(r"https?://[^/\s@?#]+(/[^\s@?#]*)?$", self.judge_url):
            raise ValueError(
                "report.judge_url is no plain http address such as http://127.0.0.1:8000/v1: a key "
                "belongs into the variable SLM_JUDGE_API_KEY, which is kept nowhere"
            )
        if not self.judge_model:
            raise ValueError("report.judge_url is set, but not report.judge_model: name the model")
        return self


class RegistryConfig(Section):
    """Where the model is registered, and what a version must show to become champion.

    Versions of one name compete: only models of the same kind of text should share it.
    """

    model: str | None = setting(
        None,
        "Name of the registered model; null: the setting name, else the name of the data.",
        pattern=NAME,
    )
    tracking_uri: str | None = setting(
        None,
        "Address of the MLflow server or store; null: MLFLOW_TRACKING_URI, else SQLite under "
        "data/mlflow/.",
    )

    gate_documents: PositiveInt = setting(
        1000, "Held-out documents on which challenger and champion are compared."
    )
    margin: float = setting(
        0.0,
        "Bits per byte by which the challenger may be worse, at 95 % confidence; 0: it must be "
        "better.",
    )
    margins: dict[str, Annotated[float, Field(ge=0)]] = setting(
        {},
        "Sources of data.sources, each with the bits per byte by which the challenger may be worse "
        "on its held-out documents, at 95 % confidence: {wiki: 0.01}.",
    )
    max_bpb: PositiveFloat = setting(
        4.0, "Maximum bits per byte of a first champion, which has no other to beat."
    )
    beat_baselines: bool = setting(
        True,
        "Whether a first champion must predict its held-out text better than token counts and xz "
        "do.",
    )
    max_degenerate: Fraction = setting(
        0.1, "Maximum share of samples that are empty, invalid or repetitive."
    )
    max_memorised: Fraction = setting(
        0.25, "Maximum share of samples that copy more of the training data than human text does."
    )
    benchmarks: dict[str, Annotated[float, Field(ge=0, le=1)]] = setting(
        {},
        "Tasks of benchmark.tasks, each with the accuracy by which the challenger may be worse, at "
        "95 % confidence: {blimp: 0.01}.",
    )

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if re.search(r"://[^/\s]*@", self.tracking_uri or ""):
            raise ValueError(
                "registry.tracking_uri contains a user or password, which every run would keep: "
                "give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


class RetrainConfig(Section):
    """When the scheduled flow trains anew, and how: see slm/retraining/decide.py.

    The thresholds are a first choice, to be set by what a dataset's drift looks like: the decision
    of every flow run reports the figures.
    """

    min_new_fraction: Fraction = setting(
        0.01, "Fraction of new documents below which nothing is trained."
    )
    max_gone_fraction: Fraction = setting(
        0.1,
        "Fraction of the champion's documents that may be gone; beyond it, training starts from "
        "the seed.",
    )
    drift_threshold: PositiveFloat = setting(
        0.03,
        "Drift in bits, beyond that of held-out documents, from which training starts from the "
        "seed.",
    )
    bpb_rise: PositiveFloat = setting(
        0.3,
        "Bits per byte by which new documents may cost the champion more than held-out ones; "
        "beyond it, training starts from the seed.",
    )
    sample_documents: PositiveInt = setting(
        500, "New documents that are measured, and as many held-out ones."
    )
    continue_fraction: Fraction = setting(
        0.3, "Fraction of the recipe's training limit when the champion is continued."
    )
    approval: bool = setting(False, "Whether a person must approve before the champion changes.")
    approval_hours: PositiveFloat = setting(
        72.0, "Hours after which an unanswered run fails, and nothing changes.", le=24 * 365
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


# ---- folders ----------------------------------------------------------------------------------


def project_root() -> Path:
    """The folder of `pipelines.yaml`: the nearest one, from the working folder upwards.

    Where there is none it is the working folder: the shipped recipes need no file.
    """
    here = Path.cwd()
    above = (folder for folder in (here, *here.parents) if (folder / PIPELINES).is_file())
    return next(above, here)


def checkout() -> Path | None:
    """The folder of this project's own repository; None where slm is installed from a wheel."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").is_file() else None


def data_root() -> Path:
    """The folder of everything produced: `SLM_DATA`, else `data/` in `project_root`."""
    given = os.environ.get("SLM_DATA")
    path = Path(given).expanduser().resolve() if given else project_root() / "data"
    check_utf8(str(path), "the data folder", "point SLM_DATA elsewhere")
    if "?" in str(path):  # the address of a SQLite file ends there
        raise UserError(f"the data folder {path} has a '?' in its path: point SLM_DATA elsewhere")
    if path.exists() and not path.is_dir():
        raise UserError(f"the data folder {path} is a file: point SLM_DATA at a folder")
    return path
