"""The one config object with its defaults, and the folders that all is kept in.

Recipes, which state only what differs from the defaults, are read by `slm.recipes`.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from slm.errors import UserError

GPT2_VOCAB_SIZE = 50_257
DEFAULT_RECIPE = "quickstart"
LIMITS = ("max_steps", "max_tokens", "max_seconds", "epochs")
_DATA_SUFFIXES = re.compile(
    r"(\.(parquet|jsonl?|ndjson|csv|tsv|txt|text|md|gz|zst))+$", re.IGNORECASE
)

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the config: frozen, and without room for a misspelt key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

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
    """What is mended or dropped before encoding; every change is counted in the manifest."""

    fix_text: bool = False  # mojibake repaired and Unicode normalised (NFC) by ftfy
    min_chars: int = Field(default=1, ge=0)
    max_chars: PositiveInt | None = None
    exact_duplicates: Literal["across_splits", "everywhere"] = "across_splits"
    near_duplicates: Fraction | None = None  # MinHash similarity above which a document is dropped


class DataConfig(Section):
    """Where the documents come from, and how they become tokens."""

    source: Literal["stories", "hub", "files"] = "stories"
    path: str = ""  # dataset id on the hub; file, folder or glob
    config_name: str | None = None  # the hub's "subset"
    revision: str | None = None  # branch, tag or commit on the hub; resolved to a commit
    train_split: str = "train"
    val_split: str | None = "validation"  # used where the dataset has it
    text_column: str = "text"
    template: str | None = None  # joins several columns: "{title}\n\n{body}"
    separator: str | None = Field(default=None, min_length=1)  # splits a text file into documents
    documents: PositiveInt | None = None  # at most so many of the train split; stories: how many
    seed: int = 1337  # of the generated stories

    clean: CleanConfig = CleanConfig()
    val_fraction: Fraction = 0.01  # by document hash, where the dataset has no split of its own
    vocab_size: int = Field(default=GPT2_VOCAB_SIZE, ge=257, le=GPT2_VOCAB_SIZE)
    shard_tokens: int = Field(default=100_000_000, gt=0, lt=2**31)  # a shard's header is int32
    workers: int = Field(default=0, ge=0)  # encoding processes, 0: one a core; bytes are the same

    @model_validator(mode="after")
    def _path_is_given(self) -> Self:
        if self.source != "stories" and not self.path:
            what = {
                "hub": "a dataset id such as roneneldan/TinyStories",
                "files": "a file or folder",
            }
            raise ValueError(f"data.path is empty: give {what[self.source]} (--set data.path=…)")
        return self


class ModelConfig(Section):
    """The shape of the GPT. The vocabulary's size comes from the tokenizer of the shards."""

    architecture: Literal["gpt2", "qwen3"] = "gpt2"
    n_layer: PositiveInt = 6
    n_head: PositiveInt = 6
    n_kv_head: PositiveInt | None = None  # qwen3 only; None: as many as n_head
    n_embd: PositiveInt = 384
    n_inner: PositiveInt | None = None  # hidden width of the MLP; None: the architecture's usual
    seq_len: PositiveInt = 128
    dropout: float = Field(default=0.0, ge=0, le=0.9)
    rope_theta: PositiveFloat = 10_000.0  # qwen3 only

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(
                f"model.n_embd={self.n_embd} is not a multiple of model.n_head={self.n_head}"
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


class TrainConfig(Section):
    """How the model is trained. Exactly one of `max_steps` … `epochs` ends it."""

    max_steps: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None  # turned into steps by a probe before the first step
    epochs: PositiveFloat | None = None

    tokens_per_step: PositiveInt = 16_384  # the global batch, over all devices and micro-steps
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"  # rows a device a pass

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 6e-4  # of AdamW
    muon_learning_rate: PositiveFloat = 0.02  # of the matrices, where optimizer is muon
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    grad_clip: PositiveFloat | None = 1.0

    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    warmup: Fraction = 0.05  # as a fraction of the steps
    cooldown: Fraction = 0.2  # wsd only: the fraction of the steps over which the rate falls
    final_lr: Fraction = 0.1  # what is left of the rate at the end, as a fraction of the peak

    seed: int = 1337
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    threads: PositiveInt | Literal["auto"] = "auto"
    processes: PositiveInt | Literal["auto"] = "auto"  # one a GPU, under torchrun
    deterministic: bool = True  # on CUDA: deterministic kernels, at a small cost

    evaluate_every: PositiveInt = 100  # steps
    evaluate_documents: PositiveInt = 64  # the fixed slice of val that is scored then
    checkpoint_every: PositiveInt = 100  # steps
    keep_checkpoints: PositiveInt = 2  # newest ones, besides the best and the last

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"training needs exactly one limit of {', '.join('train.' + n for n in LIMITS)}; "
                f"given: {', '.join(given) or 'none'}"
            )
        return self


class EvaluateConfig(Section):
    """How a checkpoint is scored."""

    documents: PositiveInt | None = None  # at most so many of val; None: all
    checkpoint: Literal["best", "last"] = "best"


class ReportConfig(Section):
    """The samples that the report shows: every prompt at every temperature and top_k."""

    prompts: tuple[str, ...] = (
        "A little girl went to the woods",
        "Once upon a time there was a",
        "One day, Tom and Sue",
    )
    temperatures: tuple[PositiveFloat, ...] = (0.5, 0.8, 1.0)
    top_ks: tuple[PositiveInt, ...] = (20, 50)
    max_new_tokens: PositiveInt = 250  # most short stories end within it
    seed: int = 1

    license: str | None = None  # of the model, in its card; None: mit for the generated stories
    language: str = "en"  # of the documents, in the model's card

    judge_url: str | None = None  # of an OpenAI-compatible API that grades the samples; None: none
    judge_model: str = ""  # its name there; the key is read from SLM_JUDGE_API_KEY alone
    judge_seconds: PositiveFloat = 60.0  # for one answer

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

    model: str | None = Field(  # None: the name of the data, see PipelineConfig.model_name
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
    )
    tracking_uri: str | None = None  # None: MLFLOW_TRACKING_URI, else SQLite under data/mlflow/

    gate_documents: PositiveInt = 1000  # held-out ones that challenger and champion are scored on
    margin: float = 0.0  # bits a byte by which it may be worse, at 95 % confidence; 0: better
    max_bpb: PositiveFloat = 4.0  # where there is no champion to be measured against
    max_degenerate: Fraction = 0.1  # share of samples that are empty, invalid or repetitive
    max_memorised: Fraction = 0.25  # share of samples that copy more of train than human text does

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if re.search(r"://[^/\s]*@", self.tracking_uri or ""):
            raise ValueError(
                "registry.tracking_uri holds a user or password, which every run would keep: give "
                "them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


class RetrainConfig(Section):
    """When the scheduled flow trains anew, and how: see slm/retrain.py.

    The thresholds are a first choice, to be set by what a dataset's drift looks like: the decision
    of every flow run tells the figures.
    """

    min_new_fraction: Fraction = 0.01  # of the documents; with fewer new ones nothing is trained
    max_gone_fraction: Fraction = 0.1  # of the champion's documents; beyond it, trained whole
    drift_threshold: PositiveFloat = 0.03  # bits, beyond what held-out documents show
    bpb_rise: PositiveFloat = 0.3  # bits a byte that the champion spends more on new documents
    sample_documents: PositiveInt = 500  # new ones, and as many held-out ones, that are measured
    continue_fraction: Fraction = 0.3  # of the recipe's training limit, going on from the champion
    approval: bool = False  # whether a person is asked before the alias moves
    approval_hours: PositiveFloat = 72.0  # after which an unanswered run fails, and nothing moves


class PipelineConfig(Section):
    """Everything that a pipeline's results depend on, and where they go."""

    recipe: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    registry: RegistryConfig = RegistryConfig()
    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def _batch_is_whole_rows(self) -> Self:
        if self.train.tokens_per_step % self.model.seq_len:
            raise ValueError(
                f"train.tokens_per_step={self.train.tokens_per_step} is not a multiple of "
                f"model.seq_len={self.model.seq_len}"
            )
        return self

    @property
    def model_name(self) -> str:
        """The registered model's name: `registry.model`, else one made from the data's name.

        articles.jsonl.zst → articles, notes/*.txt → notes, OWNER/DATASET → DATASET; the recipe's
        name where nothing usable is left; slm for the generated stories.
        """
        if self.registry.model:
            return self.registry.model
        if self.data.source == "stories":
            return "slm"
        parts = [part for part in Path(self.data.path).parts if not re.search(r"[*?\[]", part)]
        name = _DATA_SUFFIXES.sub("", parts[-1]) if parts else ""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:64] or self.recipe


# ---- folders ----------------------------------------------------------------------------------


def project_root() -> Path:
    """The folder of `pipelines.yaml`: the working folder or the nearest above it, else ours."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "pipelines.yaml").is_file():
            return folder
    raise UserError(f"no pipelines.yaml in {here} or above it: run slm inside the project")


def data_root() -> Path:
    """The folder of everything produced: `SLM_DATA`, else `data/` beside `pipelines.yaml`."""
    given = os.environ.get("SLM_DATA")
    path = Path(given).expanduser().resolve() if given else project_root() / "data"
    if "?" in str(path):  # the address of a SQLite file ends there
        raise UserError(f"the data folder {path} has a '?' in its path: point SLM_DATA elsewhere")
    return path
