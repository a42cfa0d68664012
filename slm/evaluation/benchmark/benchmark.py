"""Benchmark: a checkpoint and tasks with right answers → how often it prefers them.

An item is done right where the model gives the right answer the greatest probability: of a minimal
pair, the whole right sentence; of a question, the answer after its context. Two answers that are
equally likely are no preference, and count as wrong. All is computed in float32.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from slm import keys, storage
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.evaluation.baselines import FIVE_GRAM, training_stream
from slm.evaluation.benchmark.identity import benchmark_folder, benchmark_key
from slm.evaluation.benchmark.items import Task
from slm.evaluation.benchmark.results import Outcome, mean_accuracy, task_score, write_items
from slm.evaluation.benchmark.score import LogLikelihoods, Request, log_likelihoods, requests_of
from slm.evaluation.benchmark.tasks import read_tasks
from slm.evaluation.evaluate import scoring_device
from slm.evaluation.ngrams import KneserNey
from slm.model.gpt import GPT
from slm.model.saved import load_model
from slm.progress import Progress, automatic, silent
from slm.records import Benchmarks, Run, Shards, check_input
from slm.run_folder import RunFolder
from slm.source.hub_client import keep_cache_in
from slm.storage import run_stage, write_json
from slm.tokens.shards.reading import read_shards
from slm.tokens.tokenizer.bpe import Tokenizer

SCORES, ITEMS = "benchmarks.json", "items.parquet"
UNTRAINED = "untrained"  # the baseline: the same shape with the weights that training began with


@storage.hashing_once()
def benchmark(
    config: PipelineConfig,
    run: Run,
    shards: Shards | None = None,
    *,
    tasks: Sequence[str] | None = None,
    progress: Progress = automatic,
) -> Benchmarks:
    """Score the run's checkpoint `config.evaluate.checkpoint` on tasks.

    >>> slm.benchmark(run.config, run.record, tasks=["blimp=blimp.parquet"])["blimp"].accuracy

    Args:
        shards: that it was trained on, for the baselines alone.
        tasks: None: those of `config.benchmark.tasks`.

    Raises UserError where no task is given, or one cannot be read.
    """
    check_input(run, Run)
    if tasks is not None:
        section = config.benchmark.model_copy(update={"tasks": tuple(tasks)})
        config = config.model_copy(update={"benchmark": section})
    if not config.benchmark.tasks:
        raise UserError("no task is given: name one, such as blimp or NAME=FILE")
    home = RunFolder.of(run)
    folder = run.checkpoint(config.evaluate.checkpoint)
    checkpoint = home.checkpoint(folder.name, verify=True)
    assert checkpoint is not None, f"{run.path} names a checkpoint that is not there"
    if config.benchmark.baselines and shards is None:
        raise UserError(
            f"the 5-gram baseline is made from the shards of {run.name}, which are gone: "
            "benchmark.baselines=false, or train it again"
        )
    keep_cache_in(home.root.path)
    chosen = read_tasks(config.benchmark.tasks, progress)
    key = benchmark_key(config, chosen, checkpoint.weights_sha256, run.shards_key)

    def build(staging: Path) -> Benchmarks:
        model, tokenizer = load_model(folder, scoring_device(config))
        done = [(task, do_task(model, tokenizer, task, progress)) for task in chosen]
        baselines: dict[str, dict[str, float]] = {}
        if config.benchmark.baselines:
            assert shards is not None
            baselines = _baselines(config, shards, model, tokenizer, chosen, progress)
        scores = tuple(task_score(task, each, baselines.get(task.name)) for task, each in done)
        write_items(staging / ITEMS, done)
        write_json(staging / SCORES, {"tasks": [score.model_dump(mode="json") for score in scores]})
        return Benchmarks(
            key=key,
            run=run.name,
            checkpoint=folder.name,
            weights_sha256=checkpoint.weights_sha256,
            tasks=scores,
            items=ITEMS,
        )

    place = benchmark_folder(config, run, key)
    return run_stage(place, Benchmarks, key, build, keys.made("benchmark", config))


def do_task(
    model: GPT, tokenizer: Tokenizer, task: Task, progress: Progress = silent
) -> list[Outcome]:
    """What a model makes of the items of a task, in order."""
    prepared = _prepare(tokenizer, task, model.config.seq_len)

    def report(_: str, done: float, total: float | None) -> None:
        progress(f"{task.name}: texts", done, total)

    return _outcomes(task, prepared, log_likelihoods(model, prepared.requests, report))


class _Prepared:
    """The requests of the choices of a task, in order, and the choice that each counts for."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.owners: list[int] = []


def _prepare(tokenizer: Tokenizer, task: Task, seq_len: int) -> _Prepared:
    prepared, choice = _Prepared(), 0
    for item in task.items:
        for text in item.choices:
            requests = requests_of(tokenizer, item.context, _joined(item.context, text), seq_len)
            prepared.requests += requests
            prepared.owners += [choice] * len(requests)
            choice += 1
    return prepared


def _joined(context: str, choice: str) -> str:
    """A choice as it follows its context: after a blank, unless there is one already."""
    blank = not context or context[-1].isspace() or choice[0].isspace()
    return choice if blank else f" {choice}"


def _outcomes(task: Task, prepared: _Prepared, scored: LogLikelihoods) -> list[Outcome]:
    choices = sum(len(item.choices) for item in task.items)
    nats = np.bincount(prepared.owners, scored.nats, choices).tolist()
    truncated = np.zeros(choices, bool)
    cut = [request.truncated for request in prepared.requests]
    truncated[np.array(prepared.owners, np.int64)[np.array(cut, bool)]] = True
    outcomes, at = [], 0
    for item in task.items:
        after = at + len(item.choices)
        sizes = tuple(len(text.encode("utf-8", "replace")) for text in item.choices)
        lost = bool(truncated[at:after].any())
        outcomes.append(Outcome(tuple(nats[at:after]), sizes, item.answer, lost))
        at = after
    return outcomes


# ---- baselines --------------------------------------------------------------------------------


def _baselines(
    config: PipelineConfig,
    shards: Shards,
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """The accuracy of a 5-gram model and of the untrained model, by task and name."""
    progress("5-gram of the training documents", 0, None)
    with storage.reading(shards.path):
        stream = training_stream(read_shards(shards.path))
    counts = KneserNey(stream, shards.vocab_size, shards.eot)
    torch.manual_seed(config.train.seed)
    device = model.embed.weight.device
    untrained = GPT(model.config, model.vocab_size).to(device).eval()
    result = {}
    for task in tasks:
        # Counts see no further back than four tokens, so nothing needs to be cut.
        prepared = _prepare(tokenizer, task, 10**9)
        by_counts = _outcomes(task, prepared, _by_counts(counts, shards.eot, prepared.requests))
        result[task.name] = {
            FIVE_GRAM: mean_accuracy(task, by_counts),
            UNTRAINED: mean_accuracy(task, do_task(untrained, tokenizer, task, progress)),
        }
    return result


def _by_counts(model: KneserNey, eot: int, requests: Sequence[Request]) -> LogLikelihoods:
    """The log-likelihoods of requests by a counting model."""
    texts = [ids if ids[0] == eot else (eot, *ids) for ids, _, _ in requests]
    lengths = np.array([len(ids) for ids in texts])
    stream = np.concatenate([np.array(ids, np.int64) for ids in texts] + [np.array([eot])])
    nats = model.nats(stream)  # (T - 1,), of every token but the first
    ends = np.cumsum(lengths)
    firsts = ends - [len(ids) - first for ids, first, _ in requests]
    sums = np.concatenate(([0.0], np.cumsum(nats)))  # sums[i]: of the tokens 1 to i
    total = -(sums[ends - 1] - sums[firsts - 1])
    return LogLikelihoods(total, np.zeros(len(requests), bool))
