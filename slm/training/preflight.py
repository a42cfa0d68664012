"""What can be known of a training before anything is downloaded, and the refusals that follow.

Every command and flow that trains calls `check_before_download` first, so that hours of download
and encoding never end in a message that was due before them.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from slm import keys
from slm.config import PipelineConfig, ReportConfig
from slm.errors import SlmError, UserError, listing
from slm.evaluation.benchmark.tasks import parse_task
from slm.figures import size
from slm.machine import available_cores, available_memory, pick_device
from slm.records import Plan, Shards, ShardSplit, Source
from slm.run_folder import DataRoot, RunFolder
from slm.source.download import is_made_with
from slm.storage import read_record
from slm.tokens.cleaning import check_extras
from slm.tokens.encode import encode_key
from slm.tokens.functions import check_functions, functions_of
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2
from slm.tokens.tokenizer.training import check_trainer
from slm.tokens.vocabulary import check_given, known_vocabulary
from slm.tokens.workers import check_runner
from slm.training.elastic import max_nodes
from slm.training.needs import Needs, measure
from slm.training.nodes import nodes_of
from slm.training.plan import (
    MAX_AUTO_MICRO_BATCHES,
    MIN_TOKENS_PER_DEVICE,
    make_plan,
    pick_micro_batches,
)
from slm.training.processes import gpu_count, planned_processes, processes_here

MAX_THREADS_PER_CORE = 16  # beyond it a process may not even start them

_UNKNOWN = ShardSplit(files=[], documents=0, tokens=0, bytes=0)


def check_before_download(
    config: PipelineConfig, root: Path | None = None, *, tokenizer_sha256: str | None = None
) -> list[str]:
    """Refuse what cannot be trained and reported on this machine; return warnings, a line each.

    A training that is finished already is not checked against the machine. Raises UserError.

    `tokenizer_sha256`: of the model that the training starts from, where it is one.
    """
    if not config.data.tokenizer.is_set:  # else its vocabulary is known once it is made
        check_prompts(config.report, config.model.seq_len, lambda: gpt2(DataRoot(root).path))
    check_encoding(config, root, tokenizer_sha256=tokenizer_sha256)
    check_gate_tasks(config)
    check_gate_sources(config)
    try:
        return check_machine(config, root)
    except UserError:
        if is_trained(config, root, tokenizer_sha256=tokenizer_sha256):
            return []
        raise


def check_prompts(report: ReportConfig, seq_len: int, tokenizer: Callable[[], Tokenizer]) -> None:
    """Raises UserError for a prompt of the report that does not fit the context.

    Args:
        tokenizer: called where a prompt may be too long: no text has more tokens than bytes.
            GPT-2's is near enough before the model's own is known, whose tokens are shorter.
    """
    for prompt in report.prompts or ():  # those of held-out documents fit
        if len(prompt.encode("utf-8", "replace")) < seq_len:
            continue
        count = len(tokenizer().encode(prompt))
        if count >= seq_len:
            raise UserError(
                f"the prompt {prompt[:40]!r}… of report.prompts has {count} tokens, and "
                f"model.seq_len={seq_len} has room for {seq_len - 1}: shorten "
                "it (--set 'report.prompts=[\"…\"]'), or raise model.seq_len"
            )


def check_encoding(
    config: PipelineConfig, root: Path | None = None, *, tokenizer_sha256: str | None = None
) -> None:
    """Raises UserError where shards are to be made, and what makes them is missing, or not run."""
    try:
        for text in config.data.sources.values() or (config.data,):
            check_extras(text.clean)
            check_functions(functions_of(text.clean), text.columns)
        if config.data.tokenizer.train:
            check_trainer()
        elif config.data.tokenizer.path:
            check_given(config.data.tokenizer)
        check_runner(config.data)
    except UserError:
        if known_shards(config, root, tokenizer_sha256=tokenizer_sha256) is None:
            raise


def check_gate_tasks(config: PipelineConfig) -> None:
    """Raises UserError where the gate is to compare a task that the pipeline does not run."""
    tasks = [parse_task(task).name for task in config.benchmark.tasks]
    for name in config.registry.benchmarks:
        if name not in tasks:
            raise UserError(
                f"registry.benchmarks has {name}, a task that benchmark.tasks does not run "
                f"({listing(tasks) if tasks else 'it is empty'}): add it there, or remove it here"
            )


def check_gate_sources(config: PipelineConfig) -> None:
    """Raises UserError where the gate is to hold to a margin what is no source of the mixture."""
    sources = config.data.sources
    for name in config.registry.margins:
        if name not in sources:
            known = listing(sorted(sources)) if sources else "which is empty"
            raise UserError(
                f"registry.margins has {name}, which is not in data.sources ({known}): add it "
                "there, or remove it here"
            )


# ---- the machine ------------------------------------------------------------------------------


def check_machine(config: PipelineConfig, root: Path | None = None) -> list[str]:
    """Refuse device, precision, processes, threads, memory or disk that this machine has not."""
    device = pick_device(config.train.device).type
    processes = planned_processes(config)
    if device == "cuda" and processes > gpu_count():
        raise UserError(
            f"train.processes={processes}: one trains on each GPU, and this machine has "
            f"{gpu_count()}: use auto"
        )
    plan = make_plan(config, _UNKNOWN, processes)  # it refuses rows and precision
    _check_threads(config, processes)
    needs = measure(config)
    _check_memory(config, needs, held(needs, plan, processes), device, processes)
    return [
        *_idle_processes(config, plan.leaves),
        *_idle_nodes(config, plan.leaves),
        *_idle_gpus(config, device, processes),
        *_check_disk(config, needs, DataRoot(root).path),
    ]


def _check_threads(config: PipelineConfig, processes: int) -> None:
    threads, cores = config.train.threads, available_cores()
    if threads != "auto" and threads * processes > MAX_THREADS_PER_CORE * cores:
        of_each = f" for each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"train.threads={threads}{of_each}: this machine has {cores} cores, and more than "
            f"{MAX_THREADS_PER_CORE} threads on each cannot work: use auto"
        )


def held(needs: Needs, plan: Plan, processes: int) -> Needs:
    """What each process of a training holds at least.

    Under `elastic` it has a further set of gradients for each level of the tree that it adds up,
    under `fsdp` a part of everything.
    """
    if plan.parallel == "elastic":
        sets = max_nodes(plan.leaves, processes)
        return needs.model_copy(update={"gradients": sets * needs.gradients})
    parts = processes if plan.parallel == "fsdp" else 1
    sizes = {name: getattr(needs, name) // parts for name in ("weights", "gradients", "optimizer")}
    return needs.model_copy(update=sizes)


def _check_memory(
    config: PipelineConfig, needs: Needs, each: Needs, device: str, processes: int
) -> None:
    """Raises UserError where what a training holds at least is more than there is.

    `each`: what one of its processes holds.
    """
    memory = available_memory()
    copies = processes if device != "cuda" else 0
    if device == "cuda" and each.state > (gpu := torch.cuda.mem_get_info()[1]):
        raise _too_large(config, each, 1, 0, f"its GPU has {size(gpu)}")
    if needs.batches > memory:
        raise UserError(
            f"train.tokens_per_step={config.train.tokens_per_step}: the tokens of two steps take "
            f"{size(needs.batches)}, and this machine has {size(memory)}: lower it"
        )
    if copies * each.state + needs.checkpoint + needs.batches > memory:
        here = f"this machine has {size(memory)}"
        raise _too_large(config, each, copies, needs.checkpoint, here)


def _too_large(
    config: PipelineConfig, needs: Needs, copies: int, saved: int, available: str
) -> UserError:
    """The error for `copies` of the state, and `saved` bytes more, where less is available."""
    model, tokenizer = config.model, config.data.tokenizer
    vocabulary = f"data.vocab_size={config.data.vocab_size}"
    if tokenizer.is_set:
        size_of = f"data.tokenizer.vocab_size={tokenizer.vocab_size}"
        vocabulary = size_of if tokenizer.train else f"give a smaller {tokenizer.path}"
    parts = []
    if copies:
        each = f"in each of {copies} processes " if copies > 1 else ""
        parts.append(
            f"{each}weights {size(needs.weights)}, gradients {size(needs.gradients)}, "
            f"optimizer {size(needs.optimizer)}"
        )
    if saved:
        parts.append(f"{size(saved)} while a checkpoint is written")
    return UserError(
        f"a model of {needs.parameters:,} parameters does not fit: its training holds at least "
        f"{', and '.join(parts)}; {available}. Lower model.n_layer={model.n_layer}, "
        f"model.n_embd={model.n_embd} or {vocabulary}"
    )


def _check_disk(config: PipelineConfig, needs: Needs, data: Path) -> list[str]:
    """Raises UserError where not one checkpoint fits; warns where not all that are kept do."""
    folder = next(path for path in (data, *data.parents) if path.exists())
    free, train = shutil.disk_usage(folder).free, config.train
    remedy = f"free some space in {folder}, or point SLM_DATA elsewhere"
    if needs.checkpoint > free:
        raise UserError(
            f"a checkpoint takes {size(needs.checkpoint)}, and {size(free)} are free: {remedy}"
        )
    saves = math.ceil(train.max_steps / train.checkpoint_every) if train.max_steps else math.inf
    before_cooldown = train.schedule == "wsd"
    kept = min(train.keep_checkpoints + 1 + before_cooldown, saves)  # one more while it is written
    if kept * needs.checkpoint > free:
        return [
            f"train.keep_checkpoints={train.keep_checkpoints}: {kept} checkpoints take "
            f"{size(kept * needs.checkpoint)}, and {size(free)} are free: {remedy}"
        ]
    return []


def _idle_processes(config: PipelineConfig, micro_batches: int) -> list[str]:
    """A warning where more processes are asked for than there are micro-batches in a step."""
    train = config.train
    if train.parallel != "elastic" or train.processes == "auto":
        return []
    if train.processes <= micro_batches:
        return []
    return [
        f"train.processes={train.processes}: a step has {micro_batches} of train.micro_batches, "
        f"and {'one process trains' if micro_batches == 1 else 'no more processes train'}; "
        f"train.micro_batches={train.processes}, which is another run, would use all"
    ]


def _idle_nodes(config: PipelineConfig, micro_batches: int) -> list[str]:
    """A warning where several machines have more processes than a step has micro-batches.

    Raises UserError where the machines could not meet.
    """
    nodes = nodes_of(config.train.launch)
    if nodes is None or config.train.parallel != "elastic":
        return []
    most = nodes.most * processes_here(config)
    if most <= micro_batches:
        return []
    return [
        f"train.launch.nnodes={nodes.count}: up to {most} processes start, and a step has "
        f"{micro_batches} of train.micro_batches: no more train, the others only take over when "
        f"one is lost; train.micro_batches={most}, which is another run, would use all"
    ]


def _idle_gpus(config: PipelineConfig, device: str, processes: int) -> list[str]:
    """A warning where fewer GPUs train than would pay."""
    train, seq_len = config.train, config.model.seq_len
    paying = min(gpu_count(), train.tokens_per_step // MIN_TOKENS_PER_DEVICE)
    if device != "cuda" or train.processes != "auto" or processes >= paying:
        return []
    if train.parallel == "elastic":
        count = pick_micro_batches(config, device)
        largest = 2 ** int(math.log2(min(paying, MAX_AUTO_MICRO_BATCHES)))
        if train.micro_batches != "auto" or count >= largest:
            return [
                f"{processes} of {paying} GPUs will train, since a step has {count} micro-batches: "
                f"train.micro_batches={paying}, which is another run, would use all"
            ]
        paying = largest
    near = max(1, round(train.tokens_per_step / (paying * seq_len))) * paying * seq_len
    return [
        f"train.tokens_per_step={train.tokens_per_step} is {train.tokens_per_step // seq_len} rows "
        f"of model.seq_len={seq_len}, which do not divide among {paying} GPUs: {processes} of them "
        f"will train; {near} would use all"
    ]


def is_trained(
    config: PipelineConfig, root: Path | None = None, *, tokenizer_sha256: str | None = None
) -> bool:
    """Whether a finished run of these settings is here, as far as names and records tell."""
    data = DataRoot(root)
    try:
        shards = known_shards(config, root, tokenizer_sha256=tokenizer_sha256)
        runs = [RunFolder(path) for path in data.results("runs")]
        return shards is not None and any(
            run.is_finished
            and run.settings.derived is None
            and run.settings.shards_key == shards.key
            and keys.config_sha256(run.config) == keys.config_sha256(config)
            for run in runs
        )
    except (SlmError, OSError):  # the stages report it
        return False


def known_shards(
    config: PipelineConfig, root: Path | None = None, *, tokenizer_sha256: str | None = None
) -> Shards | None:
    """The newest finished shards that these settings made; None where there are none.

    `tokenizer_sha256`: of a given vocabulary.
    """
    data = DataRoot(root)
    named = data.results("sources", config.folder_name)
    dataset = config.data.dataset_name

    def vocabulary(source: Source) -> str | None:
        """The tokenizer that shards of this source would have; empty where that is not here."""
        if tokenizer_sha256 or not config.data.makes_vocabulary:
            return tokenizer_sha256
        known = known_vocabulary(config, source, data)
        return known.tokenizer_sha256 if known else ""

    keys = [
        encode_key(config, source, tokenizer)
        for folder in data.results("sources")
        if (source := read_record(folder, Source, verify=False))
        and (folder in named or source.dataset == dataset)  # the others are hardly the same files
        and is_made_with(source, config)
        and (tokenizer := vocabulary(source)) != ""
    ]
    known = [shards for shards in map(data.shards, keys) if shards]
    return max(known, key=lambda record: record.path.stat().st_mtime, default=None)
