"""The held-out loss during a training, on the first documents of val."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from slm.errors import Interrupted, Untrainable
from slm.evaluation.scoring import MAX_LOSS, Score, score_each
from slm.evaluation.sources import by_source, held_out_sources
from slm.records import source_bpb
from slm.tokens.shards.reading import documents
from slm.training.distributed import all_reduce_max
from slm.training.parallel import is_sharded, sharded_again
from slm.training.plan import autocast_dtype
from slm.training.session import Session
from slm.training.step import remedy


def held_out_slice(session: Session) -> list[np.ndarray[Any, Any]]:
    """The first documents of val: the same ones at every evaluation."""
    count = session.job.config.train.evaluate_documents
    return list(islice(documents(session.job.shards, "val"), count))


def evaluate_slice(session: Session, held_out: list[np.ndarray[Any, Any]]) -> Score:
    """Score the first documents of val, as many as are given, in all and by their source.

    Raises Untrainable where the loss is not finite or beyond `MAX_LOSS`.
    """
    model, tokenizer, dtype = session.model, session.job.tokenizer, autocast_dtype(session.plan)
    with sharded_again(model):
        rows = score_each(model, held_out, tokenizer.eot, tokenizer.token_bytes, autocast=dtype)
    scored = Score.total(rows)
    if sources := held_out_sources(session.job.shards, len(rows)):
        groups = by_source(rows, sources)
        scored = replace(scored, by_source={name: Score.total(g) for name, g in groups.items()})
    if not math.isfinite(scored.nats) or scored.val_loss > MAX_LOSS:
        raise Untrainable(
            f"step {session.step}: val_loss is {scored.val_loss}; the checkpoints before it are "
            f"kept; {remedy(session)}"
        )
    return scored


def losses(scored: Score) -> dict[str, float]:
    """The figures of an evaluation for the journal."""
    by_name = {source_bpb(name): each.val_bpb for name, each in scored.by_source.items()}
    return {"val_loss": scored.val_loss, "val_bpb": scored.val_bpb, **by_name}


@contextmanager
def interruptible(session: Session, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Within the block the model raises Interrupted before a batch is scored, if it should stop.

    A sharded one is scored by all processes, and all of them stop.
    """

    def check(*_: object) -> None:
        stops = should_stop()
        if bool(all_reduce_max(stops)) if is_sharded(session.model) else stops:
            raise Interrupted(
                f"stopped after step {session.step}, the last; its checkpoint is saved"
            )

    hook = session.model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
