"""How many processes train a run, by its settings and the GPUs that are here."""

import logging
import math

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.machine import pick_device
from slm.run_folder import RunFolder
from slm.training.plan import MIN_TOKENS_PER_DEVICE, pick_micro_batches

logger = logging.getLogger(__name__)


def process_count(run: RunFolder, config: PipelineConfig) -> int:
    """The processes that train a run: as its config has them now, whatever it was started with.

    Of a run that was started on GPUs, as many as there are here at most.
    """
    plan = run.plan
    if plan is None:
        return planned_processes(config)
    device = config.train.model_copy(update={"device": plan.device})
    count = planned_processes(config.model_copy(update={"train": device}), plan.leaves)
    if plan.device != "cuda" or count <= (gpus := gpu_count()):
        return count
    if not gpus:
        raise UserError(
            f"{run.name} was started on a GPU, and torch sees none here: resume it where there is "
            "one, or start another run with train.device=cpu"
        )
    logger.warning("%d GPUs are here: as many processes train, not %d", gpus, count)
    return gpus


def planned_processes(config: PipelineConfig, micro_batches: int | None = None) -> int:
    """The processes that train. `auto`: one per GPU, of as many as pay.

    Under `elastic` no more than there are micro-batches; else as many as divide the rows.

    `micro_batches`: those of the plan; None: of a new run.
    """
    train = config.train
    gpus = gpu_count() if train.device in ("auto", "cuda") else 0
    paying = min(gpus, train.tokens_per_step // MIN_TOKENS_PER_DEVICE)
    if train.parallel == "elastic":
        leaves = micro_batches or pick_micro_batches(config, "cuda" if gpus else "cpu")
        if train.processes != "auto":
            return min(train.processes, leaves)
        each = math.ceil(leaves / max(1, min(paying, leaves)))
        return math.ceil(leaves / each)  # the fewest that are as fast
    if train.processes != "auto":
        return train.processes
    rows = train.tokens_per_step // config.model.seq_len
    per_pass = 1 if train.micro_batch_size == "auto" else train.micro_batch_size
    most = gpus if train.parallel == "fsdp" else paying
    return max((n for n in range(2, most + 1) if rows % (n * per_pass) == 0), default=1)


def processes_here(config: PipelineConfig) -> int:
    """The processes of this machine, where several train. `auto`: one per GPU, or one."""
    train = config.train
    if train.processes != "auto":
        return train.processes
    return max(1, gpu_count()) if train.device in ("auto", "cuda") else 1


def uses_gpu(config: PipelineConfig) -> bool:
    """Whether a new training takes a GPU, if there is one."""
    return config.train.device != "cpu" and pick_device(config.train.device).type != "cpu"


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()
