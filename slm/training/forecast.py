"""What a recipe will cost and what is likely to go wrong, before any time is spent on it.

The forecast comes from a probe: a few real steps on random tokens, in a child process with the
environment that training gets. The advice names settings outside of what is known to work, with
their values and better ones.
"""

import logging
import math
import signal
import statistics
import subprocess
import sys
import time

import psutil
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.evaluation.scoring import token_losses
from slm.figures import size
from slm.machine import pick_device
from slm.records import Plan, ShardCount, Shards
from slm.run_folder import RunFolder
from slm.training.child import child_environment
from slm.training.elastic import max_nodes
from slm.training.needs import measure, planned_steps, vocabulary_size
from slm.training.optim import optimizer_tensors
from slm.training.plan import (
    activation_bytes,
    autocast_dtype,
    make_plan,
    memory_bytes,
    thread_count,
)
from slm.training.process import set_up_kernels
from slm.training.processes import planned_processes
from slm.training.session import Session, micro_batch_count, synthetic_session
from slm.training.step import train_step

logger = logging.getLogger(__name__)

MIN_FORECAST_FLOPS = 3e12  # of a training: some ten seconds of a CPU
PROBE_STEPS = 4
PROBE_SECONDS = 10.0  # after which no further step is timed
PROBE_FLOPS = 1e12  # of a pass on a CPU, unless one row has more
SCORED_TOKENS = 4096  # to see what the held-out loss takes

# Peak rates known to train widths up to MAX_WIDTH; beyond it the highest falls as the width grows
# (Yang et al. 2022, arXiv:2203.03466).
ADAMW_RANGE = (1e-5, 1e-2)
MUON_RANGE = (1e-3, 0.1)
MAX_WIDTH = 512

MAX_WARMUP = 0.25
MIN_STEPS = 20
MAX_CONTEXT = 4  # times the mean document
MAX_EPOCHS = 4


class ProbeRequest(BaseModel):
    """What the child is asked to measure."""

    config: PipelineConfig
    splits: dict[str, ShardCount]
    processes: int


class Forecast(BaseModel):
    """What a training will take on this machine.

    Of several processes the probe measures one, with its share of a step's rows and of the cores.
    Their communication, and what they take from each other's memory bandwidth, is not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    max_steps: int
    tokens: int
    flops: float  # of the whole training
    tok_per_sec: float  # of all processes
    seconds: float  # with those of compiling
    memory_bytes: int  # the peak of a training process
    processes: int = 1
    compile_seconds: float = 0.0


def forecast(config: PipelineConfig, shards: Shards | None) -> Forecast:
    """Probe this machine, in a child process, and multiply.

    `shards`: of the recipe; a limit in epochs needs them, and they give how much is scored. Raises
    SlmError where the probe fails.
    """
    check_limit(config, shards)
    check_free_memory(config)
    splits = {"train": shards.trained_on, "val": shards.splits["val"]} if shards else {}
    processes = planned_processes(config)
    request = ProbeRequest(config=config, splits=splits, processes=processes)
    done = subprocess.run(
        [sys.executable, "-m", "slm.training.forecast"],
        input=request.model_dump_json(),
        env=child_environment(config, processes),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        raise SlmError(
            f"the probe of {config.recipe} was killed, as the system does when memory runs out: "
            "its training would be as well"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it left no message"])[-1]
        raise SlmError(f"the probe of {config.recipe} failed: {last}")
    return Forecast.model_validate_json(done.stdout.splitlines()[-1])


def forecast_start(run: RunFolder) -> Forecast | None:
    """The forecast of a training that is about to start at its first step, where a probe pays.

    None where the limit is in seconds, on a GPU, whose first steps come as soon as a probe's, for
    one that is over as soon, or where the probe fails: the training then gives the reason.
    """
    config, shards = run.config, run.shards
    if run.plan or shards is None or config.train.max_seconds is not None:
        return None
    if pick_device(config.train.device).type != "cpu":
        return None
    tokens = planned_steps(config, shards.trained_on) * config.train.tokens_per_step
    if measure(config).flops_per_token * tokens < MIN_FORECAST_FLOPS:
        return None
    try:
        return forecast(config, shards)
    except SlmError as error:
        logger.info("no forecast: %s", error)
        return None


def check_limit(config: PipelineConfig, shards: Shards | None) -> None:
    """Raises UserError where the number of steps is not known without shards."""
    if shards is None and config.train.epochs is not None:
        raise UserError(
            f"{config.recipe} is limited by train.epochs, and its dataset is not encoded yet: "
            f"`slm encode {config.recipe}` first"
        )


def check_free_memory(config: PipelineConfig) -> None:
    """Raises SlmError where the probe would take memory that others use now."""
    free, needs = psutil.virtual_memory().available, measure(config)
    in_memory = pick_device(config.train.device).type != "cuda"
    least = needs.checkpoint + in_memory * needs.state
    if least > free:
        raise SlmError(
            f"{config.recipe} is not timed: that takes at least {size(least)} of memory, and "
            f"{size(free)} are free now"
        )


def probe(config: PipelineConfig, splits: dict[str, ShardCount], processes: int = 1) -> Forecast:
    """The probe itself, in this process: real steps on random tokens, and some of them scored.

    `splits`: those of the shards, as far as they are known. `processes`: of the training; this one
    does the share of one of them.
    """
    unknown = ShardCount(documents=0, tokens=0, bytes=0)
    plan = make_plan(config, splits.get("train", unknown), processes)
    count = micro_batch_count(plan, processes)
    rows = math.ceil(count / processes) * (plan.rows // count)
    session = synthetic_session(*probed(config, plan, rows), vocabulary_size(config))
    session.model.train()
    x, y = session.loader.batch(0)
    first, step_seconds = time_steps(session, x, y, rows)
    compile_seconds = max(0.0, first - step_seconds) if plan.compile else 0.0
    score_seconds = seconds_to_score(session)
    if plan.device != "cpu":
        peak = memory_bytes(plan.device)
    else:
        peak = memory_with_a_save(session, x, y)
        unprobed = (plan.micro_batch_size - session.plan.micro_batch_size) * config.model.seq_len
        peak += unprobed * activation_bytes(config, plan.device, plan.precision)
    if plan.parallel == "elastic":
        peak += (max_nodes(count, processes) - 1) * measure(config).gradients
    seconds = max(0.0, (config.train.max_seconds or 0) - compile_seconds)
    max_steps = plan.max_steps or max(1, int(seconds / step_seconds))
    tokens = max_steps * config.train.tokens_per_step
    scored = scored_tokens(config, max_steps, splits.get("val", unknown))
    return Forecast(
        parameters=session.model.parameter_count(),
        max_steps=max_steps,
        tokens=tokens,
        flops=session.model.flops_per_token() * tokens,
        tok_per_sec=config.train.tokens_per_step / step_seconds,
        seconds=compile_seconds + step_seconds * max_steps + scored * score_seconds,
        memory_bytes=peak,
        processes=processes,
        compile_seconds=compile_seconds,
    )


def probed(config: PipelineConfig, plan: Plan, rows: int) -> tuple[PipelineConfig, Plan]:
    """The config and the plan of the steps that are timed: at most two passes each.

    On a CPU a pass is so small that a large model takes seconds for it, not minutes.

    `rows`: of a whole step of one process.
    """
    pass_rows, seq_len = plan.micro_batch_size, config.model.seq_len
    if plan.device == "cpu":
        pass_rows = min(
            pass_rows, max(1, int(PROBE_FLOPS / (measure(config).flops_per_token * seq_len)))
        )
    small = plan.model_copy(
        update={"rows": min(rows, 2 * pass_rows), "micro_batch_size": pass_rows, "micro_batches": 1}
    )
    train = config.train.model_copy(update={"tokens_per_step": small.rows * seq_len})
    return config.model_copy(update={"train": train}), small


def time_steps(session: Session, x: Tensor, y: Tensor, rows: int) -> tuple[float, float]:
    """Seconds of the first step, and of a usual one of `rows` rows.

    Steps of one and of two passes are timed in turn, and a step takes a fixed time for the
    optimizers and the same for each row. With 2 s for one pass of 4 rows and 3 s for two, 32 rows
    take 2 + (32 - 4) · 0.25 = 9 s.
    """

    def step(count: int) -> float:
        begin = time.perf_counter()
        train_step(session, x[:count], y[:count])
        return time.perf_counter() - begin

    begin = time.monotonic()
    first = step(len(x))
    one = min(session.plan.micro_batch_size, len(x))
    if len(x) == rows:
        times = [step(rows)]
        while len(times) < PROBE_STEPS and time.monotonic() < begin + PROBE_SECONDS:
            times.append(step(rows))
        return first, statistics.median(times)
    single, double = [step(one)], [step(len(x))]
    while len(single) < PROBE_STEPS and time.monotonic() < begin + PROBE_SECONDS:
        single.append(step(one))
        double.append(step(len(x)))
    seconds = statistics.median(single)
    of_a_row = max(0.0, statistics.median(double) - seconds) / (len(x) - one)
    return first, seconds + (rows - one) * of_a_row


def memory_with_a_save(session: Session, x: Tensor, y: Tensor) -> int:
    """The process's peak where a checkpoint is written while it trains and scores.

    The writer holds a copy of all tensors meanwhile. The memory that is freed around it is reused
    only in part, so the copy is made here as well.
    """
    moments = optimizer_tensors(session.model, session.optimizers)
    copy = [t.detach().clone() for t in (*session.model.parameters(), *moments.values())]
    train_step(session, x, y)
    seconds_to_score(session)
    del copy
    return memory_bytes("cpu")


def scored_tokens(config: PipelineConfig, max_steps: int, val: ShardCount) -> float:
    """The tokens that a training scores: the slice at every evaluation, all of val at the end."""
    length = val.tokens / val.documents if val.documents else config.model.seq_len
    count = min(config.train.evaluate_documents, val.documents or math.inf)
    return val.tokens + length * count * math.ceil(max_steps / config.train.evaluate_every)


def seconds_to_score(session: Session) -> float:
    """Seconds per token that the held-out loss takes, on random documents of half a context."""
    length = max(1, session.job.config.model.seq_len // 2)
    tokens = session.loader.streams[0].tokens[0]
    ids = tokens[: max(1, min(SCORED_TOKENS, len(tokens)) // length) * length]
    held_out = list(ids.reshape(-1, length))
    begin = time.perf_counter()
    token_losses(session.model, held_out, 0, autocast=autocast_dtype(session.plan))
    return (time.perf_counter() - begin) / max(1, ids.size)


# ---- advice -----------------------------------------------------------------------------------


def advice(config: PipelineConfig, cost: Forecast, shards: Shards | None) -> list[str]:
    """The settings of a recipe that are unlikely to work, a line each, with better values.

    What can never be right (a learning rate that rises, a schedule per micro-step, a text longer
    than the context, a batch that is not whole rows) cannot be expressed in a config at all.
    """
    train, model = config.train, config.model
    lines = []
    if train.warmup > MAX_WARMUP:
        lines.append(
            f"train.warmup={train.warmup}: {train.warmup:.0%} of the steps are spent warming up; "
            f"{MAX_WARMUP} or less is usual"
        )
    for name, rate, (low, high) in (
        ("learning_rate", train.learning_rate, ADAMW_RANGE),
        ("muon_learning_rate", train.muon_learning_rate, MUON_RANGE),
    ):
        used = name == "learning_rate" or train.optimizer == "muon"
        high *= min(1.0, MAX_WIDTH / model.n_embd)
        if used and not low <= rate <= high:
            lines.append(
                f"train.{name}={rate}: outside of what is known to work at width {model.n_embd}, "
                f"{low} to {high:.2g}"
            )
    if cost.tokens < cost.parameters:
        lines.append(
            f"{cost.tokens:,} tokens for {cost.parameters:,} parameters: fewer than one each; "
            "train longer, or a smaller model"
        )
    if cost.max_steps < MIN_STEPS:
        lines.append(
            f"{cost.max_steps} steps of train.tokens_per_step={train.tokens_per_step}: too few to "
            "learn in; a smaller batch makes more of them"
        )
    if shards is not None:
        lines += _advice_on_data(config, cost, shards)
    return lines


def _advice_on_data(config: PipelineConfig, cost: Forecast, shards: Shards) -> list[str]:
    split, lines = shards.trained_on, []
    length = split.tokens / max(1, split.documents)
    if config.model.seq_len > MAX_CONTEXT * length:
        lines.append(
            f"model.seq_len={config.model.seq_len}: the documents have {length:.0f} tokens on "
            "average, so the far end of the context sees other documents only"
        )
    epochs = cost.tokens / split.tokens
    if epochs > MAX_EPOCHS:
        lines.append(
            f"{epochs:.1f} epochs over {split.tokens:,} tokens: past about {MAX_EPOCHS} repeated "
            "data is worth little (Muennighoff et al. 2023, arXiv:2305.16264); get more, or stop"
        )
    return lines


def main() -> None:
    """The child: the request of `forecast` on standard input, a forecast out."""
    request = ProbeRequest.model_validate_json(sys.stdin.read())
    train, processes = request.config.train, request.processes
    set_up_kernels(train, pick_device(train.device), thread_count(train, processes))
    print(probe(request.config, request.splits, processes).model_dump_json())


if __name__ == "__main__":
    main()
