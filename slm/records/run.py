"""Records of a training: what it starts from, its checkpoints, and the run."""

from pathlib import Path
from typing import Any

from pydantic import Field

from slm.records.record import Record


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
