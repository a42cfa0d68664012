"""What passes between stages: small frozen records with paths, counts and hashes. Never tensors.

Source  → download: parquet files, one row a document
Vocabulary → tokenizer: a trained or given one, where the config has any
Shards  → encode: token shards of each split, and the tokenizer; of a mixture → mix
Run     → train: the run folder, finished; a Parent is the model that it started from, if any
Checkpoint, Selection, Evaluation, Benchmarks, Report → one folder each inside the run's
Export  → export: a model in the format of other programs
Version → register: a model version in the MLflow registry
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Literal, Required, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from slm.errors import UserError, excerpt
from slm.figures import two_lines


class Frozen(BaseModel):
    """Values that do not change, without room for an unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr__(self) -> str:
        """Two lines: `model_dump()` has everything."""
        return two_lines(type(self).__name__, dict(self))

    __str__ = __repr__


_HIDDEN = ("key", "path", "reused", "pulled")  # of a record, in its repr


class FileEntry(Frozen):
    """Size and hash of one file of a record's folder."""

    bytes: int
    sha256: str


class Record(Frozen):
    """What a finished stage leaves in `record.json`, and hands to the next stage."""

    no_content: ClassVar[frozenset[str]] = (
        frozenset()
    )  # files that no stage reads: see content_hash
    key: str
    files: dict[str, FileEntry] = Field(default_factory=dict)
    path: Path = Field(default=Path(), exclude=True)  # where the folder is now
    reused: bool = Field(default=False, exclude=True)  # whether it was complete before this call
    pulled: bool = Field(default=False, exclude=True)  # whether this call got it from a store

    @property
    def name(self) -> str:
        """The folder's name, `<name>-<key>`."""
        return self.path.name

    def __repr__(self) -> str:
        """Two lines, its name first: `model_dump()` has everything."""
        values = {name: value for name, value in self if name not in _HIDDEN}
        values = {name: value for name, value in values.items() if value is not None}
        return two_lines(f"{type(self).__name__} {self.name or self.key[:12]}", values)

    __str__ = __repr__


class Made(Frozen):
    """How a stage's result was made, in `made.json` next to its record."""

    settings: dict[str, Any]  # by dotted key, as they were given
    seconds: float
    cpu: str


class SourceSplit(Frozen):
    """One split of a source: its parquet files in order, with one document a row."""

    files: list[str]
    documents: int
    bytes: int  # UTF-8 bytes of all documents


class SourcePart(Frozen):
    """One source of a mixture, as it is joined with the others."""

    key: str  # of its own Source
    dataset: str
    revision: str
    splits: dict[str, SourceSplit]  # its files in the folder of the mixture
    license: str | None = None


class Source(Record):
    """A downloaded dataset: parquet files whose column `text` holds one document a row.

    A column `columns` has what `data.columns` keeps next to each (slm/source/formats/kept.py).
    """

    dataset: str  # hub id, local path as given, or "stories"
    revision: str  # commit on the hub; for local files, the sha256 over their names and hashes
    splits: dict[str, SourceSplit]  # "train", and "val" where the dataset has its own
    origin: dict[str, str] = Field(default_factory=dict)  # each input file → its sha256
    dropped: dict[str, int] = Field(default_factory=dict)  # rows left out: reason → count
    inputs: dict[str, str] = Field(default_factory=dict)  # split → the files it was read from
    notes: list[str] | None = None  # files left out or missing, a line per kind; None: unknown
    parts: dict[str, SourcePart] = Field(default_factory=dict)  # of a mixture, by name

    @property
    def documents(self) -> int:
        return sum(split.documents for split in self.splits.values())


class Vocabulary(Record):
    """A tokenizer that was trained on the train split of a source, given, or, of a mixture,
    trimmed.
    """

    kind: Literal["trained", "given", "trimmed"]
    source_key: str | None  # that it was made from; of a given one None
    tokenizer_sha256: str
    vocab_size: int  # end-of-text and special tokens included
    pattern: str  # its name, or itself where it has none
    special_tokens: tuple[str, ...] = ()
    origin: str  # what trained it; or where it was given: its file, or hf:ORG/NAME@COMMIT
    origin_sha256: str | None = None  # of that file
    documents: int = 0  # of train that it was trained on
    bytes: int = 0


class ShardCount(Frozen):
    """What one shard file holds."""

    documents: int
    tokens: int  # end-of-text tokens included
    bytes: int  # UTF-8 bytes of the documents


class ShardSplit(ShardCount):
    """What one split of the shards holds, and its files in order."""

    files: list[str]
    counts: dict[str, ShardCount] = Field(default_factory=dict)  # the same of each file


class ShardsPart(Frozen):
    """The shards of one source of a mixture, as they are joined with the others."""

    key: str  # of its own Shards
    source_key: str
    train: ShardSplit  # its files in the folder of the mixture; without what is excluded
    val: ShardCount  # of the held-out documents that are its own
    excluded: dict[str, int] = Field(default_factory=dict)  # reason → documents of train and val
    license: str | None = None


EXCLUDED = "excluded.jsonl"  # of shards, with ROWS: see slm/tokens/exclusions.py
ROWS = {"train": "train.rows", "val": "val.rows"}


class Shards(Record):
    """Encoded documents: `train_00000.bin` …, `val_00000.bin` …, and their tokenizer."""

    no_content = frozenset((EXCLUDED, *ROWS.values()))
    source_key: str
    tokenizer_sha256: str
    vocab_size: int
    eot: int  # id of end-of-text, which opens every document
    splits: dict[str, ShardSplit]
    dropped: dict[str, int] = Field(default_factory=dict)  # reason → documents
    cleaning: dict[str, Any] = Field(default_factory=dict)  # counts and examples, for the report
    length_histogram: dict[str, int] = Field(default_factory=dict)  # "≤ tokens" → documents
    parts: dict[str, ShardsPart] = Field(default_factory=dict)  # of a mixture, by name

    @property
    def trained_on(self) -> ShardCount:
        """What a pass over the training tokens reads: of a mixture without what is excluded."""
        parts = [part.train for part in self.parts.values()]
        if not parts:
            return self.splits["train"]
        return ShardCount(
            documents=sum(part.documents for part in parts),
            tokens=sum(part.tokens for part in parts),
            bytes=sum(part.bytes for part in parts),
        )


class Imported(Record):
    """A Hugging Face model in our form: weights, shape and vocabulary, in `data/imported/`."""

    model: str  # hf:ORG/NAME@COMMIT, or hf:FOLDER
    origin: dict[str, str]  # each of its files that was read → its sha256
    tokenizer_sha256: str


class Parent(Record):
    """A model that a training continues from: weights, shape and vocabulary. Its key is their hash.

    Each run keeps a copy in its own folder, so that it can be resumed and reproduced whatever
    happens to the model's own run.
    """

    # where it came from: models:/NAME/VERSION, run/checkpoint, hf:ORG/NAME@COMMIT or hf:FOLDER
    model: str
    run: str  # that it was trained in; empty: not known
    tokenizer_sha256: str
    origin: dict[str, str] = Field(default_factory=dict)  # of one that was imported: as there

    @property
    def weights_sha256(self) -> str:
        return self.files["model.safetensors"].sha256


class Checkpoint(Record):
    """One saved state of a training: weights, optimizer state, and the step."""

    step: int
    tokens: int  # tokens trained on so far
    config_sha256: str
    shards_key: str
    tokenizer_sha256: str
    plan_sha256: str = ""  # empty in checkpoints from before it was recorded
    decision_sha256: str = ""  # of the end by the clock; empty up to the first step of the cooldown
    parent_sha256: str | None  # weights_sha256 of the checkpoint that training resumed from
    train_loss: float
    val_loss: float | None = None  # on the fixed slice of val, where it was scored at this step
    val_bpb: float | None = None
    environment: dict[str, Any] = Field(default_factory=dict)

    @property
    def weights_sha256(self) -> str:
        return self.files["model.safetensors"].sha256


class Run(Record):
    """A finished training. `key` names the folder; the checkpoints are in `checkpoints/`."""

    shards_key: str
    best: str  # name of the checkpoint with the lowest val_bpb on the fixed slice of val
    last: str  # name of the final checkpoint
    step: int
    tokens: int  # trained on
    train_loss: float  # mean over the last tenth of the steps
    val_loss: float  # of the final weights, on all of val
    val_bpb: float
    tok_per_sec: float  # median over the steps
    seconds: float  # spent in steps
    parameters: int
    weights_sha256: str  # of the final weights
    level: str  # what is promised bit for bit, by docs/reliability.md
    environment: dict[str, Any] = Field(default_factory=dict)

    def checkpoint(self, which: str) -> Path:
        """The folder of the `best` or the `last` checkpoint."""
        return self.path / "checkpoints" / (self.best if which == "best" else self.last)


class Selection(Record):
    """The best checkpoint of a finished run by another cadence than the run's own."""

    run: str
    best: str  # name of the checkpoint with the lowest val_bpb
    evaluate_every: int
    evaluate_documents: int
    val_bpb: dict[str, float]  # of each step, by its number


class Evaluation(Record):
    """A checkpoint scored on every held-out document once, in order."""

    run: str
    checkpoint: str
    weights_sha256: str
    documents: int
    tokens: int
    bytes: int
    val_loss: float  # nats per token
    val_bpb: float  # bits per UTF-8 byte
    details: dict[str, Any] = Field(default_factory=dict)


class GroupScore(Frozen):
    """How well a model does a part of a task, such as a paradigm or a field of BLiMP."""

    items: int
    accuracy: float
    stderr: float
    field: str | None = None  # of a paradigm: the field that it belongs to


class TaskScore(Frozen):
    """How well a model does a task of a benchmark.

    Where a task has paradigms, every figure of the whole is the mean over these, each counted
    alike, as BabyLM does.
    """

    name: str
    kind: Literal["minimal_pairs", "multiple_choice"]
    source: str  # where its items were read from, as it was given
    sha256: str  # of its items: a task of the same name may have others
    items: int
    accuracy: float  # share of items whose right answer has the greatest log-likelihood
    stderr: float  # of the accuracy
    chance: float  # expected accuracy of guessing
    distinguishable: bool  # from chance: that is outside the 95 % interval of the accuracy
    accuracy_per_byte: float | None = None  # by log-likelihood per UTF-8 byte of the answer
    bits_per_byte: float | None = None  # of the right answer, given its context
    ties: int = 0  # items of which several answers are the most likely: they count as wrong
    truncated: int = 0  # items of which the context lost its beginning
    groups: dict[str, GroupScore] = Field(default_factory=dict)  # by paradigm
    by_field: dict[str, GroupScore] = Field(default_factory=dict)  # by field: over its paradigms
    baselines: dict[str, float] = Field(default_factory=dict)  # accuracy of what is not the model


class Benchmarks(Record):
    """A checkpoint scored on the tasks of some benchmarks, with the outcome of every item."""

    run: str
    checkpoint: str
    weights_sha256: str
    tasks: tuple[TaskScore, ...]
    items: str = "items.parquet"  # a row per item: see slm/evaluation/benchmark/results.py

    def __getitem__(self, task: str) -> TaskScore:
        return next(score for score in self.tasks if score.name == task)


class TaskDifference(Frozen):
    """The accuracy of two models on the same items of a task; differences are second minus first.

    As in the accuracy of a task, each paradigm counts alike.
    """

    task: str
    items: int
    first: float  # accuracy
    second: float
    difference: float
    low: float  # the 95 % interval of the difference
    high: float

    @property
    def better(self) -> bool | None:
        """Whether the second is better; None where that is not shown."""
        return None if self.low <= 0 <= self.high else self.low > 0

    @property
    def figures(self) -> str:
        """In percentage points: `+1.2 points (95 %: +0.4 to +2.0) on the same 900 items`."""
        points = (f"{100 * value:+.1f}" for value in (self.difference, self.low, self.high))
        middle, low, high = points
        return f"{middle} points (95 %: {low} to {high}) on the same {self.items:,} items"

    @property
    def sentence(self) -> str:
        """Which of the two is better, as far as the interval shows, as A and B."""
        result = {True: "B is better", False: "A is better", None: "no difference is shown"}
        both = f"{100 * self.first:.1f} % and {100 * self.second:.1f} % right"
        return f"{result[self.better]}: {both}, {self.figures}, B - A"

    @property
    def comparison(self) -> str:
        """Both accuracies and their difference."""
        ours, theirs = (f"{100 * value:.1f} %" for value in (self.second, self.first))
        return f"{ours} right, the champion {theirs}: {self.figures}"


class SourceDifference(Frozen):
    """Two models on the same held-out documents of one source, in bits per byte.

    The difference is challenger minus champion; None where there is no champion.
    """

    source: str
    documents: int
    val_bpb: float  # of the challenger
    champion_bpb: float | None = None
    difference: float | None = None
    low: float | None = None  # the 95 % interval; None too where the documents are too few for one
    high: float | None = None
    margin: float | None = None  # by which the challenger may be worse; None: by any

    @property
    def interval(self) -> str:
        """`-0.0120 to +0.0031`."""
        if self.low is None or self.high is None:
            return "too few documents for an interval"
        return f"{self.low:+.4f} to {self.high:+.4f}"

    @property
    def figures(self) -> str:
        """`+0.0123 bits per byte (95 %: +0.0051 to +0.0195) on the same 300 documents`."""
        interval = self.interval if self.low is None else f"95 %: {self.interval}"
        return (
            f"{self.difference:+.4f} bits per byte ({interval}) on the same {self.documents:,} "
            "documents"
        )


def task_scores(benchmarks: Iterable[Benchmarks]) -> list[TaskScore]:
    """The score of every task; of one that several results have, the first."""
    scores: dict[str, TaskScore] = {}
    for result in benchmarks:
        for score in result.tasks:
            scores.setdefault(score.name, score)
    return list(scores.values())


class Report(Record):
    """The report of a run: `index.html`, `report.md`, the model card, the samples they show."""

    run: str
    html: str = "index.html"
    markdown: str = "report.md"
    card: str = "README.md"

    def _repr_html_(self) -> str | None:
        """The page, in a frame: what a notebook shows."""
        page = self._read(self.html)
        if page is None:
            return None
        style = "width: 100%; height: 45em; border: 0"
        return f'<iframe srcdoc="{escape(page)}" sandbox="allow-popups" style="{style}"></iframe>'

    def _repr_markdown_(self) -> str | None:
        """The same as Markdown: what a notebook shows where it shows no frames."""
        return self._read(self.markdown)

    def _read(self, name: str) -> str | None:
        with suppress(OSError):  # it was deleted, or is elsewhere
            return (self.path / name).read_text("utf-8")
        return None


class Export(Record):
    """A model in the format of other programs: a Hugging Face folder, or one GGUF file.

    `files` has the files that were written; those of a GGUF export are next to each other.
    """

    to: Literal["hf", "gguf"]
    dtype: str  # f32, f16, bf16, q8_0
    claim: dict[str, str]  # what it is made from: weights_sha256, tokenizer_sha256, run, version …
    parity: dict[str, float] = Field(default_factory=dict)  # what comparing it with ours gave
    warnings: list[str] = Field(default_factory=list, exclude=True)  # readers that cannot load it
    pushed: str | None = Field(default=None, exclude=True)  # its address on the hub


def model_uri(name: str, version: str | None = None, *, alias: str | None = None) -> str:
    """How MLflow, and every command of ours, names a model, or a version by number or alias."""
    if alias:
        return f"models:/{name}@{alias}"
    return f"models:/{name}/{version}" if version else f"models:/{name}"


# A model alone, by an alias or a number; LATEST is its newest version.
_VERSION = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+|latest))?|([^/@:]+)@([^/@]+)")
LATEST = "latest"


def names_version(reference: str) -> bool:
    """Whether a reference is of a model version, such as `slm@champion`, and not of a run."""
    given = _VERSION.fullmatch(reference) is not None and not Path(reference).exists()
    return given or reference.startswith("models:")


def parse_version(reference: str) -> tuple[str, str | None]:
    """Name, and alias or number, of a reference to a model version; None where it has neither.

    >>> parse_version("models:/slm@champion"), parse_version("slm@champion")
    (("slm", "champion"), ("slm", "champion"))
    >>> parse_version("models:/slm/3"), parse_version("models:/slm")
    (("slm", "3"), ("slm", None))

    Raises UserError where it is none.
    """
    parsed = _VERSION.fullmatch(reference)
    if parsed is None:
        raise UserError(
            f"{excerpt(repr(reference))} is not models:/NAME, models:/NAME@ALIAS, NAME@ALIAS or "
            "models:/NAME/VERSION"
        )
    name, alias, number, bare, bare_alias = parsed.groups()
    return name or bare, alias or number or bare_alias


class Version(Record):
    """A model version in the registry, as `registered.json` in the run's folder remembers it."""

    model: str
    version: str
    aliases: list[str]
    run_id: str
    tracking_uri: str

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return model_uri(self.model, self.version)


_WHERE_FROM = {
    "Source": "slm.download returns it",
    "Shards": "slm.encode returns them",
    "Run": "slm.train returns it, and slm.open_run(NAME).record reads it",
    "Evaluation": "slm.evaluate returns it",
}


def check_input(value: object, record: type[Record]) -> None:
    """Raises UserError where a stage is called with something other than the record it needs."""
    if not isinstance(value, record):
        name = record.__name__
        raise UserError(f"{type(value).__name__} instead of {name}: {_WHERE_FROM[name]}")


# ---- training ---------------------------------------------------------------------------------


class Plan(Frozen):
    """What is fixed before the first step of a run, written to `plan.json`; it never changes."""

    max_steps: int  # where the clock decides the cooldown, the probe's estimate
    rows: int  # per step, over all processes
    micro_batch_size: int  # rows per device and pass; a last pass that is short is padded
    world_size: int = 1  # of an older run: its processes, each with a micro-batch of its own
    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["bf16", "fp16", "fp32"]
    threads: int
    compile: bool
    muon_precision: Literal["bf16", "fp32"] = "bf16"  # of Muon's products
    parts: Literal["plain", "fused"] = "plain"  # of the model's blocks (slm/model/fused.py)
    probe: dict[str, float] = {}
    cooldown_by_clock: bool = False  # whether a Decision ends the training; not `max_steps`
    warmup_steps: int | None = None  # of the shorter training that this continues; None: as usual
    ended_at: int | None = None  # the last step, before the schedule's end: see Derivation
    parallel: Literal["elastic", "ddp", "fsdp"] = "elastic"  # how several processes train
    micro_batches: int = 1  # per step; their gradients are summed in a tree (elastic)

    @property
    def leaves(self) -> int:
        """The leaves of the tree in which the gradients of a step are summed."""
        return self.world_size if self.world_size > 1 else self.micro_batches

    def end(self, decision: "Decision | None") -> int | None:
        """The last step of the training; None while the clock has not decided it."""
        if self.ended_at is not None:
            return self.ended_at
        if not self.cooldown_by_clock:
            return self.max_steps
        return decision.max_steps if decision else None

    @property
    def level(self) -> str:
        """What is promised bit for bit, by the levels of docs/reliability.md."""
        if self.device == "mps" or self.world_size > 2:
            return "B"  # Metal's kernels promise no bits, and nor did older sums over three or more
        if self.parallel != "elastic":
            return "E" if self.device == "cpu" else "B"  # NCCL's sums are not proved to repeat
        if self.leaves > 1:
            return "F"
        return "C" if self.device == "cpu" else "D"


class Decision(Frozen):
    """The cooldown that the clock chose, once, written to `decision.json`; it never changes."""

    cooldown_start: int  # steps before the cooldown
    max_steps: int  # with the cooldown
    seconds: float  # of the training, up to the cooldown
    step_seconds: float  # recent, when it was decided


class Derivation(Frozen):
    """How a run was made from another one, at one of its steps: ended early, or trained for longer.

    Up to that step it has the other's bits. It holds all that it needs: the other may be deleted.
    """

    run: str  # the other one's name
    key: str  # its key
    step: int
    longer: int  # steps beyond its end; 0: ended early
    weights_sha256: str  # of its checkpoint of that step

    @property
    def text(self) -> str:
        """In words, such as `step 300 of quickstart-3693316e0b15, 500 steps longer`."""
        change = f"{self.longer} steps longer" if self.longer else "ended there"
        return f"step {self.step} of {self.run}, {change}"


def source_bpb(source: str) -> str:
    """The name of a source's bits per byte in journals and MLflow: `source.wiki.val_bpb`."""
    return f"source.{source}.val_bpb"


def bpb_by_source(entry: Mapping[str, Any]) -> dict[str, float]:
    """The bits per byte of each source in an evaluation's entry; empty without a mixture."""
    begin, end = source_bpb("\0").split("\0")
    return {
        name.removeprefix(begin).removesuffix(end): value
        for name, value in entry.items()
        if name.startswith(begin) and name.endswith(end)
    }


class JournalEntry(TypedDict, total=False):
    """A line of a run's journal: what happened, when, and at which step, with its figures.

    An evaluation on several sources has the bits per byte of each too, by the name `source_bpb`.
    """

    event: Required[str]  # start, resume, step, evaluate, checkpoint, decision, diverged, end
    time: Required[float]  # unix seconds
    step: int
    train_loss: float  # nats per token, of a step
    lr: float
    grad_norm: float | None  # None where it was not finite
    tok_per_sec: float
    tokens: int  # trained on so far
    memory_bytes: int
    mfu: float
    gflops: float
    val_loss: float  # nats per token on the fixed slice of val, of an evaluation
    val_bpb: float
    name: str  # of a checkpoint
    max_steps: int
    parameters: int
    processes: int  # that train from there on, of a start or resume
    seconds: float  # of the training so far, in steps and evaluations, where the clock ends it
