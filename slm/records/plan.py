"""What is decided once for a training: its plan, its end by the clock. And its journal."""

from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict

from pydantic import Field

from slm.records.record import Frozen


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
    probe: dict[str, float] = Field(default_factory=dict)
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
