"""The state of a training: opened from a run folder, restored from a checkpoint, saved to one."""

import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError, TrainingError, Untrainable, UserError
from slm.evaluation.scoring import Score
from slm.machine import pick_device
from slm.model.gpt import GPT
from slm.model.loss import Gradient, compiled_gradient, differentiate
from slm.model.saved import CONFIG, first_not_finite, load_weights
from slm.records import Checkpoint, Decision, Parent, Plan, Shards
from slm.run_folder import (
    CHECKPOINTS,
    DECISION,
    LOCK,
    LOCK_PATIENCE_SECONDS,
    PLAN,
    RunFolder,
    checkpoint_name,
)
from slm.storage import lock
from slm.tokens.loader import Loader
from slm.tokens.mixture.order import order_of
from slm.tokens.mixture.reading import train_streams
from slm.tokens.permutation import derive_seed
from slm.tokens.shards.reading import read_shards
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training.checkpoint import (
    CheckpointWriter,
    checkpoint_to_resume,
    clear_leftovers,
    load_training_state,
    prune,
    shared_with_longer,
)
from slm.training.distributed import broadcast_from_rank0, wait_for_rank0
from slm.training.elastic import share_of
from slm.training.exchange import StepSum
from slm.training.journal import Journal
from slm.training.nodes import LOST_SECONDS, VISIBLE_SECONDS
from slm.training.optim import (
    build_optimizers,
    cooldown_start,
    load_optimizer_tensors,
    optimizer_tensors,
    planned_factor,
)
from slm.training.parallel import gather, is_sharded, load_weights_into, replicate, shard
from slm.training.plan import decision_sha256, plan_sha256

NONE_YET = "none yet"  # a broadcast is of some bytes


@dataclass(frozen=True)
class Job:
    """The inputs of a training process: a run folder and what it names."""

    run: RunFolder
    key: str
    config: PipelineConfig
    shards: Shards
    tokenizer: Tokenizer
    rank: int
    world_size: int
    parent: Parent | None = None  # that the weights start from; None: from the seed

    @property
    def config_sha256(self) -> str:
        return keys.config_sha256(self.config)


@dataclass
class Session:
    """The state of a training."""

    job: Job
    plan: Plan
    device: torch.device  # with the index of this process's GPU
    loader: Loader
    model: GPT
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler
    step: int = 0
    resumed_from: str | None = None  # weights_sha256 of the model that this process started from
    best_step: int = 0
    best_bpb: float = math.inf
    skipped: int = 0  # steps in a row that were not made, since fp16 gradients overflowed
    decision: Decision | None = None  # of the clock, where that decides the cooldown
    forward: Callable[[Tensor], Tensor] = field(init=False)  # of the model, or its compiled form
    loss_gradient: Gradient = differentiate
    step_sum: StepSum | None = field(init=False, default=None)  # of several micro-batches (elastic)

    def __post_init__(self) -> None:
        self.forward = self.model
        if self.plan.compile:  # nothing is compiled before the first call
            self.forward = torch.compile(self.model)
            if self.plan.device == "cuda":
                self.loss_gradient = compiled_gradient()
        if self.plan.parallel == "ddp" and self.job.world_size > 1:
            self.forward = replicate(self.forward, self.device)
        rank, world_size = self.job.rank, self.job.world_size
        if self.plan.parallel == "elastic" and max(self.plan.leaves, world_size) > 1:
            parameters = list(self.model.parameters())
            self.step_sum = StepSum(parameters, self.plan.leaves, rank, world_size)

    @property
    def micro_batches(self) -> range:
        """The micro-batches of a step that this process trains on."""
        job = self.job
        return share_of(micro_batch_count(self.plan, job.world_size), job.rank, job.world_size)

    @property
    def max_steps(self) -> int | None:
        """The last step; None while the clock has not decided it."""
        return self.plan.end(self.decision)

    @property
    def is_done(self) -> bool:
        """Whether the last step is made."""
        return self.max_steps is not None and self.step >= self.max_steps

    @property
    def learning_rate_factor(self) -> float:
        """The fraction of the peak rate at the next step."""
        return planned_factor(self.step, self.plan, self.decision, self.job.config.train)


def open_job(run: RunFolder) -> Job:
    """Read a run folder. Rank 0 verifies its shards, so that no damaged token is trained on."""
    settings, rank = run.settings, int(os.environ.get("RANK", "0"))
    shards = run.shards
    if shards is None:
        raise UserError(
            f"the shards of {run.name} are gone: `slm train {run.name}` makes them again"
        )
    if rank == 0:
        read_shards(shards.path)
    wait_for_rank0()
    return Job(
        run=run,
        key=settings.key,
        config=settings.config,
        shards=shards,
        tokenizer=Tokenizer.load(shards.path / TOKENIZER),
        rank=rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        parent=run.parent,
    )


def only_trainer(run: RunFolder) -> AbstractContextManager[None]:
    """The run's lock, which rank 0 holds for all processes.

    On several nodes an earlier rank 0 that was cut off holds it until it notices that.
    """
    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    patience = LOCK_PATIENCE_SECONDS
    if LOST_SECONDS in os.environ:
        patience += 2 * float(os.environ[LOST_SECONDS])
    return lock(run.path / LOCK, wait=False, patience=patience)


def open_session(job: Job, plan: Plan) -> Session:
    """A run's state: from its newest valid checkpoint, or new from the seed."""
    session = new_session(job, plan)
    session.decision = share_decision(job.run.decision if job.rank == 0 else None)
    folder = job.run.path / CHECKPOINTS
    if job.rank == 0:
        clear_leftovers(folder)
    else:
        wait_for_rank0()  # which repairs the folder before the others read it
    steps = [e["step"] for e in job.run.journal if e["event"] == "step"]
    checkpoint = checkpoint_to_resume(folder, max(steps, default=0))
    if job.rank == 0:
        wait_for_rank0()
    if checkpoint := as_rank0_sees(checkpoint, folder, max(steps, default=0)):
        restore(session, checkpoint)
    return session


def as_rank0_sees(checkpoint: Checkpoint | None, folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint that all processes resume from, once this one sees it.

    Another node may see a new folder of a shared file system seconds later.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    expected = broadcast_from_rank0(checkpoint.weights_sha256 if checkpoint else NONE_YET)
    while (checkpoint.weights_sha256 if checkpoint else NONE_YET) != expected:
        if time.monotonic() > deadline:
            seen = checkpoint.name if checkpoint else "none"
            raise TrainingError(
                f"{socket.gethostname()} does not see the checkpoint in {folder} that the first "
                f"node resumes from, but {seen}: the nodes must share the data folder"
            )
        time.sleep(0.5)
        checkpoint = checkpoint_to_resume(folder, step)
    return checkpoint


def share_decision(decision: Decision | None) -> Decision | None:
    """The decision of rank 0, in all processes."""
    text = broadcast_from_rank0(decision.model_dump_json() if decision else NONE_YET)
    return None if text == NONE_YET else Decision.model_validate_json(text)


def synthetic_session(
    config: PipelineConfig, plan: Plan, vocab_size: int, rank: int = 0, world_size: int = 1
) -> Session:
    """A session on random tokens and no folder: for probes and benchmarks."""
    shards = Shards(
        key="",
        source_key="",
        tokenizer_sha256="",
        vocab_size=vocab_size,
        eot=vocab_size - 1,
        splits={},
    )
    job = Job(RunFolder(Path()), "", config, shards, Tokenizer([]), rank, world_size)
    count = 4 * config.train.tokens_per_step
    tokens = np.random.default_rng(0).integers(0, vocab_size, count)
    return new_session(job, plan, [tokens])


def new_session(
    job: Job, plan: Plan, tokens: Sequence[npt.NDArray[np.integer]] | None = None
) -> Session:
    """A session at step 0: weights from the seed or the parent, optimizers without state.

    `tokens`: the shards of train; None: read from the job's.
    """
    config, device = job.config, pick_device(plan.device)
    torch.manual_seed(derive_seed(config.train.seed, "weights"))
    model = GPT(config.model, job.shards.vocab_size)
    if job.parent:
        model.load_state_dict(initial_weights(job.parent, model))
    if plan.parts == "fused":
        model.use_fused_parts()
    if config.train.document_mask:
        model.mask_documents(job.shards.eot)
    if plan.parallel == "fsdp" and job.world_size > 1:
        shard(model, device)
    model = model.to(device)
    count = micro_batch_count(plan, job.world_size)
    share, rows = share_of(count, job.rank, job.world_size), plan.rows // count
    own = range(share.start * rows, share.stop * rows)
    loader = new_loader(config, plan, job.shards, tokens, own=own, device=device)
    if job.shards.parts:
        lengths = [part.train.tokens for part in job.shards.parts.values()]
        assert lengths == [len(stream) for stream in loader.streams], "the order is of others"
    optimizers = build_optimizers(model, config.train, plan.muon_precision)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
    origin = job.parent.weights_sha256 if job.parent else None
    return Session(job, plan, device, loader, model, optimizers, scaler, resumed_from=origin)


def new_loader(
    config: PipelineConfig,
    plan: Plan,
    shards: Shards,
    tokens: Sequence[npt.NDArray[np.integer]] | None = None,
    *,
    own: range | None = None,
    device: torch.device | None = None,
    steps: int = 1,
) -> Loader:
    """The loader of a training.

    Args:
        tokens: the shards of train; None: read from `shards`.
        own: those of a step's rows that this process takes; None: all of them.
        steps: so many steps of the training are one of the loader: the order is one of rows.
    """
    return Loader(
        *(train_streams(shards) if tokens is None else [tokens]),
        seq_len=config.model.seq_len,
        rows=plan.rows * steps,
        seed=config.train.seed,
        own=own,
        device=device,
        order=order_of(config, shards, plan),
        eot=shards.eot if config.train.rows == "documents" else None,
    )


def initial_weights(parent: Parent, model: GPT) -> dict[str, Tensor]:
    """The weights of a parent for a model whose context may be shorter: its first positions."""
    weights = load_weights(parent.path)
    if model.positions is not None:
        positions = weights["positions.weight"][: model.config.seq_len]  # (T, C)
        weights = {**weights, "positions.weight": positions}
    return weights


def micro_batch_count(plan: Plan, world_size: int) -> int:
    """The micro-batches of a step. Those of `elastic` do not depend on the number of processes."""
    return plan.leaves if plan.parallel == "elastic" else world_size


def restore(session: Session, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a new session. Refuses one of another config or data."""
    for part, saved, now in (
        ("config", checkpoint.config_sha256, keys.resumable_hashes(session.job.config)),
        ("shards", checkpoint.shards_key, [session.job.shards.key]),
        ("tokenizer", checkpoint.tokenizer_sha256, [session.job.tokenizer.sha256]),
    ):
        if saved not in now:
            raise UserError(
                f"{checkpoint.path} has another {part} ({saved[:12]}…, now {now[0][:12]}…): "
                f"restore {session.job.run.path / CONFIG}, or start a new run by its recipe"
            )
    if checkpoint.plan_sha256 not in ("", plan_sha256(session.plan)):
        raise CorruptionError(
            f"{session.job.run.path / PLAN} is not the plan that {checkpoint.name} was made by"
        )
    if checkpoint.decision_sha256 != decision_sha256(session.decision, checkpoint.step):
        raise CorruptionError(
            f"{session.job.run.path / DECISION} is not the decision that {checkpoint.name} was "
            "made by"
        )
    weights, moments, state = load_training_state(checkpoint.path)
    load_weights_into(session.model, weights)
    load_optimizer_tensors(session.model, session.optimizers, moments)
    session.scaler.load_state_dict(state["scaler"])
    session.step, session.resumed_from = checkpoint.step, checkpoint.weights_sha256
    session.best_step = state["best_step"]
    session.best_bpb = math.inf if state["best_bpb"] is None else state["best_bpb"]


def starts_cooldown(session: Session) -> int | None:
    """The step whose checkpoint a longer training would continue from; None where there is none."""
    return cooldown_start(session.plan, session.decision, session.job.config.train)


def save(
    session: Session,
    writer: CheckpointWriter,
    journal: Journal,
    loss: float,
    score: Score | None,
    environment: dict[str, Any],
) -> None:
    """Start to save the session's state; older checkpoints are deleted once it is durable.

    Raises Untrainable, in all processes, where a tensor of it is not finite.
    """
    weights: dict[str, Tensor] = session.model.state_dict()
    moments = optimizer_tensors(session.model, session.optimizers)
    sharded = is_sharded(session.model)
    if sharded:  # all processes gather what rank 0 saves
        writes = session.job.rank == 0
        (weights, first), (moments, second) = gather(weights, writes), gather(moments, writes)
    if tensor := first or second if sharded else first_not_finite({**weights, **moments}):
        raise Untrainable(
            f"step {session.step}: {tensor} is not finite after it, so nothing is saved; the "
            "checkpoints before it are kept; lower train.learning_rate, which is another run, or "
            "check the data"
        )
    if session.job.rank != 0:
        return
    name, best = checkpoint_name(session.step), checkpoint_name(session.best_step)
    record = Checkpoint(
        key=session.job.key,
        step=session.step,
        tokens=session.step * session.job.config.train.tokens_per_step,
        config_sha256=session.job.config_sha256,
        shards_key=session.job.shards.key,
        tokenizer_sha256=session.job.tokenizer.sha256,
        plan_sha256=plan_sha256(session.plan),
        decision_sha256=decision_sha256(session.decision, session.step),
        parent_sha256=session.resumed_from,
        train_loss=loss,
        val_loss=score.val_loss if score else None,
        val_bpb=score.val_bpb if score else None,
        environment=environment,
    )
    state = {
        "scaler": session.scaler.state_dict(),
        "best_step": session.best_step,
        "best_bpb": session.best_bpb if math.isfinite(session.best_bpb) else None,
    }
    keep, start = session.job.config.train.keep_checkpoints, starts_cooldown(session)

    def saved(_: Checkpoint) -> None:
        journal.write("checkpoint", step=record.step, name=name)
        prune(writer.folder, keep, {best, *shared_with_longer(writer.folder, start)})

    writer.save(
        record, session.model, moments, state, then=saved, weights=weights if sharded else None
    )
