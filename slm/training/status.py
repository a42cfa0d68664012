"""What a person is shown of a training while it runs: one line, from the entries of its journal."""

from collections.abc import Iterable

from slm.figures import size
from slm.records import JournalEntry, Plan
from slm.run_folder import RunFolder

SMOOTHING = 0.95  # weight of the steps before: a step counts half after about 14 more


class Smoothed:
    """An exponential mean without the bias of its start (Kingma and Ba 2015, section 3)."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * value
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    @property
    def value(self) -> float:
        return self._sum / self._weight


class Status:
    """The newest step, smoothed loss and rate, the last held-out loss, and memory.

    Args:
        before: entries of an earlier process, of which the held-out loss is still the last one.
    """

    def __init__(self, before: Iterable[JournalEntry] = ()) -> None:
        self.step = 0
        self.val_bpb: float | None = None
        self.memory_bytes = 0
        self.loss, self.tok_per_sec = Smoothed(), Smoothed()
        for entry in before:
            self.val_bpb = entry.get("val_bpb", self.val_bpb)

    def add(self, entry: JournalEntry) -> None:
        self.val_bpb = entry.get("val_bpb", self.val_bpb)
        if entry["event"] == "step":
            self.step = entry["step"]
            self.memory_bytes = entry.get("memory_bytes", 0)
            self.loss.add(entry["train_loss"])
            self.tok_per_sec.add(entry["tok_per_sec"])

    def line(self, max_steps: int | None, estimate: int | None = None) -> str:
        """`step 120 of 500  loss 2.312  val_bpb 0.913  6,400 tokens/s  1.2 GB`.

        What matters most is first: a narrow terminal cuts the end off. To be called once there was
        a step.

        Args:
            max_steps: the last step; None: the clock will decide it.
            estimate: of it.
        """
        return figures(
            last_step(self.step, max_steps, estimate),
            self.loss.value,
            self.val_bpb,
            self.tok_per_sec.value,
            self.memory_bytes,
        )


def last_step(step: int, max_steps: int | None, estimate: int | None = None) -> str:
    """`step 120 of 500`, `step 120 of about 500`, `step 120`."""
    last = f" of {max_steps:,}" if max_steps else f" of about {estimate:,}" if estimate else ""
    return f"step {step:,}{last}"


def figures(
    step: str,
    loss: float | None,
    val_bpb: float | None,
    tok_per_sec: float | None,
    memory_bytes: int | None,
) -> str:
    """The line of a training: its step and what is known of the rest."""
    parts = [
        step,
        f"loss {loss:.3f}" if loss is not None else "",
        f"val_bpb {val_bpb:.3f}" if val_bpb is not None else "",
        f"{tok_per_sec:,.0f} tokens/s" if tok_per_sec is not None else "",
        size(memory_bytes) if memory_bytes else "",
    ]
    return "  ".join(part for part in parts if part)


def estimated_end(run: RunFolder, step: int) -> int | None:
    """The last step that the plan expects where the clock decides; None once it is passed."""
    plan: Plan | None = run.plan
    return plan.max_steps if plan and plan.max_steps >= step else None
