"""The settings that fit a dataset and a machine, each with its reason.

Every rule is here. They go by what the data and the machine are, never by a stopwatch, so the same
data on the same kind of machine gives the same recipe. Where a figure comes from measurements of
this project, they are in docs/decisions.md; where it is an assumption, the comment says so.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from slm.config import GPT2_VOCAB_SIZE, DataConfig, ModelConfig, PipelineConfig, TrainConfig
from slm.figures import count, duration
from slm.machine import available_cores, has_amx_bf16, pick_device
from slm.project.survey import Survey
from slm.tokens.holdout import MIN_VAL_DOCUMENTS

Kind = Literal["gpu", "amx", "cpu"]

# FLOP/s in training that count for the size of the model. A step of `tinystories-sample` has 55
# GFLOP in its model and takes 223 ms on two cores with AMX, 408 ms without ("what a step costs on a
# CPU" and "the training step on both kinds of CPU" in docs/decisions.md).
CORE_FLOPS: dict[Kind, float] = {"amx": 120e9, "cpu": 65e9}
MAX_CORES = 16  # that are counted: an assumption, the products of small models do not fill more
GPU_SHARE = 0.2  # of a data sheet's rate that a small model reaches: an assumption
GPU_FLOPS = 10e12  # of an NVIDIA GPU that is not in `PEAK_TFLOPS`: an assumption
OTHER_FLOPS = 1e12  # of another device, such as Apple's GPUs: an assumption

# A first model within minutes; on a GPU, which is worth it, half an hour.
MAX_SECONDS: dict[Kind, int] = {"gpu": 1800, "amx": 300, "cpu": 300}
MIN_SECONDS = 10
# What a step takes besides its products: an assumption, of small models on quiet machines.
STEP_SECONDS: dict[Kind, float] = {"gpu": 0.02, "amx": 0.01, "cpu": 0.01}

# Tokens per parameter that the time allows. Hoffmann et al. 2022 (arXiv:2203.15556): 20. In minutes
# on a CPU that would be a model too small to write sentences; below one, `slm check` warns.
# Of little data, passes counted, there is at least one token per parameter.
TOKENS_PER_PARAMETER: dict[Kind, int] = {"gpu": 20, "amx": 1, "cpu": 1}
MIN_TOKENS_PER_PARAMETER = 1
MAX_EPOCHS = 4  # repeated data is worth little beyond: Muennighoff et al. 2023, arXiv:2305.16264

# Of TinyStories (4.0 MB) 4,096 tokens were better than 2,048 ("the small recipes"): an entry for
# each 500 bytes, so that it occurs about 125 times on average. Many entries cost a CPU too much.
BYTES_PER_ENTRY = 500
MIN_VOCAB = 512
MAX_VOCAB: dict[Kind, int] = {"gpu": 8192, "amx": 4096, "cpu": 4096}
LARGE_BYTES = 10e9  # of text, from which a GPU takes all of GPT-2's vocabulary
# Tokens of GPT-2's whole vocabulary for one of a trimmed one, measured on TinyStories.
TRIMMED = {512: 0.57, 1024: 0.76, 2048: 0.90, 4096: 0.97}

# Held-out documents of a dataset without a val split: 100 make figures that do not jump from run to
# run; 30 are enough for the gate, which needs 20 (slm/registry/vetoes.py), however they are
# drawn. More than these fractions of the documents are not taken from train for that.
HELD_OUT, HELD_OUT_FRACTION = 100, 0.1
MIN_HELD_OUT, MAX_FRACTION = 30, 0.2

# Attention costs a CPU most where contexts are long, and 256 tokens hold nearly all stories ("the
# small recipes"); a far end that few documents reach sees other documents only.
MIN_CONTEXT = 64
MAX_CONTEXT: dict[Kind, int] = {"gpu": 1024, "amx": 256, "cpu": 256}
CONTEXTS_PER_DOCUMENT = 4  # times the mean document, beyond which `slm check` warns

# Width, layers and heads: 64 wide heads, and depth grows with width, as in the shipped recipes.
SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 2), (192, 4, 3), (256, 4, 4), (384, 6, 6), (512, 8, 8),
          (768, 12, 12))  # fmt: skip

# Smaller steps win while there are only hundreds of them ("the small recipes"); a GPU needs larger
# ones to be filled.
MIN_BATCH: dict[Kind, int] = {"gpu": 8192, "amx": 512, "cpu": 512}
MAX_BATCH: dict[Kind, int] = {"gpu": 131_072, "amx": 2048, "cpu": 2048}
MIN_STEPS: dict[Kind, int] = {"gpu": 1000, "amx": 300, "cpu": 300}
# AdamW's, of embeddings and norms, in steps of some thousand tokens ("time to quality"); a GPU's
# steps are larger by far, and its rate is that of the shipped recipe.
LEARNING_RATE: dict[Kind, float] = {"gpu": 3.0e-3, "amx": 1.2e-2, "cpu": 1.2e-2}
EVALUATIONS = 10  # of a training that is shorter than ten times the default cadence


@dataclass(frozen=True)
class Machine:
    """What counts of a machine: its kind, and the FLOP/s that are assumed of it."""

    kind: Kind
    flops: float
    name: str


@dataclass(frozen=True)
class Choice:
    """A setting by its dotted key, its value, and why."""

    key: str
    value: Any
    why: str


def this_machine() -> Machine:
    """This machine, as `train.device: auto` would use it."""
    from slm.training.plan import peak_flops  # loads torch

    device = pick_device("auto").type
    if device != "cpu":
        if device != "cuda":
            return Machine("gpu", OTHER_FLOPS, f"a GPU ({device})")
        peak = peak_flops(device, "bf16")
        return Machine("gpu", peak * GPU_SHARE if peak else GPU_FLOPS, "a GPU (CUDA)")
    cores = available_cores()
    kind: Kind = "amx" if has_amx_bf16() else "cpu"
    plural = "" if cores == 1 else "s"
    name = f"{cores} core{plural} {'with' if kind == 'amx' else 'without'} AMX"
    return Machine(kind, CORE_FLOPS[kind] * min(cores, MAX_CORES), name)


def fit(survey: Survey, data: DataConfig, machine: Machine) -> list[Choice]:
    """The settings of a recipe for a dataset on a machine, in the order of a recipe."""
    return list(_choices(survey, data, machine))


def _choices(survey: Survey, data: DataConfig, machine: Machine) -> Iterator[Choice]:
    kind, text = machine.kind, survey.train.bytes
    vocab = vocab_size(text, kind)
    per_token = survey.bytes_per_token * TRIMMED.get(vocab, 1.0)
    unique = text / per_token  # tokens of train
    yield Choice("data.vocab_size", vocab, _why_vocab(vocab, kind))
    fraction = val_fraction(survey)
    if fraction is not None:
        held_out = round(fraction * survey.train.documents)
        yield Choice("data.val_fraction", fraction, f"held out: about {held_out} documents")
    context, why = seq_len(survey, per_token, kind)
    size = size_for(unique, vocab, context, machine)
    seconds, limit = limit_of(size, unique, machine)
    yield Choice(
        "model.architecture",
        "qwen3",
        "rotary positions, RMSNorm, SwiGLU, as in the shipped recipes",
    )
    for name, value in (("n_layer", size.layers), ("n_head", size.heads), ("n_embd", size.width)):
        yield Choice(
            f"model.{name}",
            value,
            f"size: {count(size.parameters)} parameters, for about {count(size.tokens)} tokens of "
            f"training on {machine.name}: {size.tokens / size.parameters:.1f} for each",
        )
    yield Choice("model.seq_len", context, why)
    yield Choice("train.max_seconds", seconds, limit)
    steps = size.tokens / size.batch
    yield Choice("train.tokens_per_step", size.batch, f"batch: about {count(steps)} steps")
    yield Choice("train.optimizer", "muon", "learns faster than AdamW per step")
    rate = LEARNING_RATE[kind]
    yield Choice("train.learning_rate", rate, "of embeddings and norms; Muon has its own")
    yield Choice("train.schedule", "linear", "down to final_lr over all steps")
    yield Choice("train.final_lr", 0.0, "")
    cadence = evaluation_cadence(steps)
    if cadence != TrainConfig.model_fields["evaluate_every"].default:
        number = f"evaluations: about {steps / cadence:.0f}, as the training is short"
        yield Choice("train.evaluate_every", cadence, number)
        yield Choice("train.checkpoint_every", cadence, "each may be the best, which is kept")


def vocab_size(text: int, kind: Kind) -> int:
    """A power of two, or all of GPT-2's.

    >>> [vocab_size(size, "amx") for size in (10_000, 700_000, 4_000_000, 50_000_000_000)]
    [512, 1024, 4096, 4096]
    >>> [vocab_size(size, "gpu") for size in (4_000_000, 2_000_000_000, 50_000_000_000)]
    [4096, 8192, 50257]
    """
    if kind == "gpu" and text >= LARGE_BYTES:
        return GPT2_VOCAB_SIZE
    return min(MAX_VOCAB[kind], max(MIN_VOCAB, _power_of_two(text / BYTES_PER_ENTRY)))


def _why_vocab(vocab: int, kind: Kind) -> str:
    if vocab == GPT2_VOCAB_SIZE:
        return "vocabulary: all of GPT-2's tokens, as there is much text"
    if vocab == MAX_VOCAB[kind]:
        where = "a GPU" if kind == "gpu" else "a CPU"
        return f"vocabulary: GPT-2's tokens that occur most, as many as pay on {where}"
    if vocab == MIN_VOCAB:
        return "vocabulary: GPT-2's tokens that occur most; few, as there is little text"
    return f"vocabulary: GPT-2's tokens that occur most, about one for {BYTES_PER_ENTRY} bytes"


def val_fraction(survey: Survey) -> float | None:
    """The fraction that is held out where the default would be too few; else None.

    Of fewer than ten documents the end of each is held out, by the default.
    """
    documents, default = survey.train.documents, DataConfig.model_fields["val_fraction"].default
    if "val" in survey.splits or documents < MIN_VAL_DOCUMENTS:
        return None
    if default * documents >= HELD_OUT:
        return None
    fraction = min(HELD_OUT_FRACTION, HELD_OUT / documents)
    if fraction * documents < MIN_HELD_OUT:
        fraction = min(MAX_FRACTION, MIN_HELD_OUT / documents)
    return math.ceil(100 * fraction - 1e-9) / 100


def seq_len(survey: Survey, per_token: float, kind: Kind) -> tuple[int, str]:
    """The context, and why: it holds 95 of 100 documents, where that is not too long."""
    longest = survey.p95 / per_token + 1
    whole = max(MIN_CONTEXT, 2 * _power_of_two(longest - 1))
    useful = max(MIN_CONTEXT, _power_of_two(CONTEXTS_PER_DOCUMENT * survey.mean / per_token))
    context = min(whole, useful, MAX_CONTEXT[kind])
    if context == whole:
        return context, f"context: 95 of 100 documents have at most about {longest:,.0f} tokens"
    if context == MAX_CONTEXT[kind]:
        where = "a GPU" if kind == "gpu" else "a CPU"
        half = survey.median / per_token + 1
        return (
            context,
            f"context: the most that pays on {where}; half of the documents have {half:,.0f} "
            "tokens or fewer",
        )
    return context, "context: most documents are much shorter than the longest"


def batch_tokens(tokens: float, context: int, kind: Kind) -> int:
    """Tokens per step: as many steps as are needed, in whole rows.

    >>> batch_tokens(4_000_000, 256, "amx"), batch_tokens(100_000, 128, "amx")
    (2048, 512)
    """
    batch = _power_of_two(tokens / MIN_STEPS[kind])
    return max(context, MIN_BATCH[kind], min(MAX_BATCH[kind], batch))


@dataclass(frozen=True)
class Size:
    """A model's shape, and the training that it gets."""

    width: int
    layers: int
    heads: int
    parameters: int
    tokens: float  # that it is trained on
    batch: int
    seconds: float


def size_for(unique: float, vocab: int, context: int, machine: Machine) -> Size:
    """The largest model that has enough tokens for its parameters, else the smallest.

    Both what the time allows and what a few passes over the data give have to be enough.

    Args:
        unique: tokens of train.
    """
    kind = machine.kind
    for width, layers, heads in reversed(SHAPES):
        parameters, flops = _cost(width, layers, heads, vocab, context)
        token_seconds = flops / machine.flops
        in_time = MAX_SECONDS[kind] / (token_seconds + STEP_SECONDS[kind] / MAX_BATCH[kind])
        tokens = min(in_time, MAX_EPOCHS * unique)
        batch = batch_tokens(tokens, context, kind)
        seconds = tokens * (token_seconds + STEP_SECONDS[kind] / batch)
        size = Size(width, layers, heads, parameters, tokens, batch, seconds)
        if (
            in_time >= TOKENS_PER_PARAMETER[kind] * parameters
            and tokens >= MIN_TOKENS_PER_PARAMETER * parameters
        ):
            break
    return size


@cache
def _cost(width: int, layers: int, heads: int, vocab: int, context: int) -> tuple[int, float]:
    """A model's parameters, and its FLOPs per token in training."""
    from slm.training.needs import measure

    model = ModelConfig(
        architecture="qwen3", n_layer=layers, n_head=heads, n_embd=width, seq_len=context
    )
    data, train = DataConfig(vocab_size=vocab), TrainConfig(max_steps=1, optimizer="muon")
    needs = measure(PipelineConfig(recipe="fit", data=data, model=model, train=train))
    return needs.parameters, needs.flops_per_token


def limit_of(size: Size, unique: float, machine: Machine) -> tuple[int, str]:
    """The limit in seconds, and why: some passes over the data, at most a first training's time."""
    longest, passes = MAX_SECONDS[machine.kind], size.tokens / unique
    needed = 10 * math.ceil(size.seconds / 10)
    if passes < MAX_EPOCHS or needed > longest:
        many = f"about {passes:.1f} passes over" if passes >= 1 else f"about {passes:.0%} of"
        return longest, (
            f"limit: a first model in {duration(longest)}, {many} the tokens; more time makes a "
            "better one"
        )
    return max(MIN_SECONDS, needed), (
        f"limit: about {MAX_EPOCHS} passes over {count(unique)} tokens, beyond which repeated data "
        "is worth little; the checkpoint that predicts held-out text best is kept"
    )


def evaluation_cadence(steps: float) -> int:
    """Steps between evaluations: the default, unless that gives fewer than ten.

    >>> [evaluation_cadence(steps) for steps in (5000, 1000, 290, 58)]
    [100, 100, 20, 5]
    """
    default: int = TrainConfig.model_fields["evaluate_every"].default
    usual = (5, 10, 20, 50, default)
    return max(each for each in usual if each == usual[0] or each * EVALUATIONS <= steps)


def _power_of_two(value: float) -> int:
    """The largest that is not above a value, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)
