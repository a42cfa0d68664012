"""What a recipe will cost and where it is likely to go wrong, before any time is spent on it.

The forecast comes from a probe: a few real steps on random tokens, in a child process with the
environment that training gets. The advice names settings outside what is known to work; each line
says what, which value, and a better one.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.evaluation.scoring import token_losses
from slm.records import Shards, ShardSplit, Source
from slm.run_folder import DataRoot
from slm.source.download import is_made_with
from slm.storage import read_record
from slm.tokens.encode import encode_key
from slm.training.launch import child_environment
from slm.training.loop import train_step
from slm.training.optim import optimizer_tensors
from slm.training.plan import autocast_dtype, make_plan, memory_bytes, pick_device
from slm.training.process import set_up_kernels
from slm.training.session import Session, synthetic_session

PROBE_STEPS = 4
SCORED_TOKENS = 4096  # to see what the held-out loss takes

# Peak rates known to train widths up to WIDEST; beyond it the highest falls as the width grows
# (Yang et al. 2022, arXiv:2203.03466).
ADAMW_RANGE = (1e-5, 1e-2)
MUON_RANGE = (1e-3, 0.1)
WIDEST = 512

MOST_WARMUP = 0.25
FEWEST_STEPS = 20
LONGEST_CONTEXT = 4  # times the mean document
MOST_EPOCHS = 4


class Forecast(BaseModel):
    """What a training will take on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    max_steps: int
    tokens: int
    flops: float  # of the whole training
    tok_per_sec: float
    seconds: float
    memory_bytes: int  # the peak of the training process


def forecast(config: PipelineConfig, shards: Shards | None) -> Forecast:
    """Probes this machine, in a child process, and multiplies.

    `shards`: of the recipe; a limit in epochs needs them, and they say how much is scored. Raises
    SlmError where the probe fails.
    """
    if shards is None and config.train.epochs is not None:
        raise UserError(
            f"{config.recipe} is limited by train.epochs, and its dataset is not encoded yet: "
            f"`slm encode {config.recipe}` first"
        )
    splits = shards.splits if shards else {}
    given = json.dumps(
        {
            "config": config.model_dump(mode="json"),
            "splits": {name: split.model_dump(mode="json") for name, split in splits.items()},
        }
    )
    done = subprocess.run(
        [sys.executable, "-m", "slm.training.forecast"],
        input=given,
        env=child_environment(config),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it left no message"])[-1]
        raise SlmError(f"the probe of {config.recipe} failed: {last}")
    return Forecast.model_validate_json(done.stdout.splitlines()[-1])


def probe(config: PipelineConfig, splits: dict[str, ShardSplit]) -> Forecast:
    """The probe itself, in this process: real steps on random tokens, and some of them scored.

    `splits`: those of the shards, as far as they are known.
    """
    unknown = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
    plan = make_plan(config, splits.get("train", unknown), world_size=1)
    session = synthetic_session(config, plan, config.data.vocab_size)
    session.model.train()
    x, y = session.loader.batch(0)
    times = []
    for _ in range(PROBE_STEPS + 1):
        begin = time.perf_counter()
        train_step(session, session.model, x, y)
        times.append(time.perf_counter() - begin)
    step_seconds = statistics.median(times[1:])
    score_seconds = seconds_to_score(session)
    peak = memory_bytes("cuda") if plan.device == "cuda" else memory_with_a_save(session, x, y)
    max_steps = plan.max_steps or int((config.train.max_seconds or 0) / step_seconds)
    tokens = max_steps * config.train.tokens_per_step
    scored = scored_tokens(config, max_steps, splits.get("val", unknown))
    return Forecast(
        parameters=session.model.parameter_count(),
        max_steps=max_steps,
        tokens=tokens,
        flops=session.model.flops_per_token() * tokens,
        tok_per_sec=config.train.tokens_per_step / step_seconds,
        seconds=step_seconds * max_steps + scored * score_seconds,
        memory_bytes=peak,
    )


def memory_with_a_save(session: Session, x: Tensor, y: Tensor) -> int:
    """The process's peak where a checkpoint is written while it trains and scores.

    The writer holds a copy of all tensors meanwhile. What is freed around it is used again only in
    part, so it is made here as well.
    """
    moments = optimizer_tensors(session.model, session.optimizers)
    copy = [t.detach().clone() for t in (*session.model.parameters(), *moments.values())]
    train_step(session, session.model, x, y)
    seconds_to_score(session)
    del copy
    return memory_bytes("cpu")


def scored_tokens(config: PipelineConfig, max_steps: int, val: ShardSplit) -> float:
    """The tokens that a training scores: the slice every so often, all of val at the end."""
    length = val.tokens / val.documents if val.documents else config.model.seq_len
    count = min(config.train.evaluate_documents, val.documents or math.inf)
    return val.tokens + length * count * math.ceil(max_steps / config.train.evaluate_every)


def seconds_to_score(session: Session) -> float:
    """Seconds that the held-out loss takes a token, on random documents of half a context."""
    length = max(1, session.job.config.model.seq_len // 2)
    tokens = session.loader.tokens[0]
    ids = tokens[: max(1, min(SCORED_TOKENS, len(tokens)) // length) * length]
    held_out = list(ids.reshape(-1, length))
    begin = time.perf_counter()
    token_losses(session.model, held_out, 0, autocast=autocast_dtype(session.plan))
    return (time.perf_counter() - begin) / max(1, ids.size)


def known_shards(config: PipelineConfig, root: Path | None = None) -> Shards | None:
    """The newest finished shards that these settings made; None where there are none."""
    data = DataRoot(root)
    folders = data.results("sources", config.recipe)
    sources = [read_record(folder, Source, verify=False) for folder in folders]
    made = [encode_key(config, s, None) for s in sources if s and is_made_with(s, config)]
    found = [shards for shards in map(data.shards, made) if shards]
    return max(found, key=lambda record: record.path.stat().st_mtime, default=None)


# ---- advice -----------------------------------------------------------------------------------


def advice(config: PipelineConfig, found: Forecast, shards: Shards | None) -> list[str]:
    """What of a recipe is unlikely to work, a line each: what, which value, what would do.

    What can never be right (a learning rate that rises, a schedule per micro-step, a text longer
    than the context, a batch that is not whole rows) cannot be said in a config at all.
    """
    train, model = config.train, config.model
    lines = []
    if train.warmup > MOST_WARMUP:
        lines.append(
            f"train.warmup={train.warmup}: {train.warmup:.0%} of the steps are spent warming up; "
            f"{MOST_WARMUP} or less is usual"
        )
    for name, rate, (low, high) in (
        ("learning_rate", train.learning_rate, ADAMW_RANGE),
        ("muon_learning_rate", train.muon_learning_rate, MUON_RANGE),
    ):
        used = name == "learning_rate" or train.optimizer == "muon"
        if used and not low <= rate <= high * min(1.0, WIDEST / model.n_embd):
            lines.append(
                f"train.{name}={rate}: outside of what is known to work at width {model.n_embd}, "
                f"{low} to {high * min(1.0, WIDEST / model.n_embd):.2g}"
            )
    if found.tokens < found.parameters:
        lines.append(
            f"{found.tokens:,} tokens for {found.parameters:,} parameters: fewer than one each; "
            "train longer, or on a smaller model"
        )
    if found.max_steps < FEWEST_STEPS:
        lines.append(
            f"{found.max_steps} steps of train.tokens_per_step={train.tokens_per_step}: too few to "
            "learn in; a smaller batch makes more of them"
        )
    if shards is not None:
        lines += _advice_on_data(config, found, shards)
    return lines


def _advice_on_data(config: PipelineConfig, found: Forecast, shards: Shards) -> list[str]:
    split, lines = shards.splits["train"], []
    length = split.tokens / max(1, split.documents)
    if config.model.seq_len > LONGEST_CONTEXT * length:
        lines.append(
            f"model.seq_len={config.model.seq_len}: the documents have {length:.0f} tokens on "
            "average, so the far end of the context sees other documents only"
        )
    epochs = found.tokens / split.tokens
    if epochs > MOST_EPOCHS:
        lines.append(
            f"{epochs:.1f} epochs over {split.tokens:,} tokens: past about {MOST_EPOCHS} repeated "
            "data is worth little (Muennighoff et al. 2023, arXiv:2305.16264); get more, or stop"
        )
    return lines


def main() -> None:
    """The child: a config and the splits of its shards on standard input, a forecast out."""
    given = json.load(sys.stdin)
    config = PipelineConfig.model_validate(given["config"])
    set_up_kernels(config.train, pick_device(config.train.device))
    splits = {name: ShardSplit.model_validate(split) for name, split in given["splits"].items()}
    print(probe(config, splits).model_dump_json())


if __name__ == "__main__":
    main()
