"""What keeps a run from being rebuilt: what is gone, changed, or of another version."""

import torch

from slm import storage
from slm.history.lineage import Lineage, Link
from slm.machine import has_mps
from slm.records import Run, Shards
from slm.reproduction.comparing import Difference
from slm.run_folder import CHECKPOINTS, RunFolder
from slm.training.identity import TRAIN_VERSION, run_inputs, run_keys
from slm.training.journal import process_counts

# Links that are rebuilt where their files are gone; all others must be there.
REBUILT = ("source", "tokenizer", "shards", "checkpoint", "evaluation")
MAX_VERSION = 100  # of training, that are tried to name the one that a key was made with


def obstacle(
    chain: Lineage, run: RunFolder, record: Run | None
) -> tuple[tuple[str, ...], Difference] | None:
    """Why a run cannot be rebuilt, and the first link that is to blame; None where it can."""
    lacking = [link for link in chain.broken if not _is_no_obstacle(link)]
    if lacking:
        missing = tuple(
            f"{link.name} {link.state}: {note}"
            for link in lacking
            for note in link.notes or (link.value,)
        )
        return missing, Difference(what=lacking[0].name, recorded=lacking[0].digest)
    assert record is not None, "the lineage would lack it"
    if run.config.data.source == "hub" and chain["dataset"].digest is None:
        return ("the commit of the dataset is not known any more",), Difference(what="dataset")
    plan = run.plan
    assert plan is not None, "a finished run has one"
    counts = process_counts(run)
    if plan.world_size > 2 or (plan.parallel != "elastic" and len(counts) > 1):
        sums = (
            f"{max(plan.world_size, *counts)} processes summed gradients in an order that is lost"
        )
        return (sums,), Difference(what="environment")
    needed = 1 if plan.parallel == "elastic" else max(counts)
    if plan.device == "cuda" and torch.cuda.device_count() < needed:
        gpus = f"{torch.cuda.device_count()} GPUs here, {needed} needed"
        return (gpus,), Difference(what="environment")
    if plan.device == "mps" and not has_mps():
        return ("it was trained on mps, and torch sees no Apple GPU here",), Difference(
            what="environment"
        )
    saved = {
        name: entry
        for name, entry in record.files.items()
        if name.startswith(f"{CHECKPOINTS}/") and (run.path / name).is_file()
    }
    if wrong := storage.mismatches(run.path, saved):
        return tuple(wrong), Difference(what="checkpoint")
    shards = run.shards
    if shards and (reason := other_training(run, record.key, shards, chain)):
        return (reason,), Difference(what="code", recorded=chain["code"].digest)
    return None


def _is_no_obstacle(link: Link) -> bool:
    """Whether a broken link leaves the run to be rebuilt.

    Code at another commit does: if another version of a stage would run, its key says so. Of code
    that had changes in no commit (`gone`) the keys say nothing. A run that was made from another
    one holds all that it needs.
    """
    if link.state == "gone":
        return link.name in REBUILT
    return link.name in ("code", "environment", "made from")


def other_training(run: RunFolder, key: str, shards: Shards, chain: Lineage) -> str | None:
    """Why this code trains other bits than the run's; None where the key shows that it does not."""
    settings = run.settings
    inputs = run_inputs(shards, settings.parent_key, settings.derived)
    made_by = [
        version
        for version in range(1, MAX_VERSION)
        if key in run_keys(settings.config, inputs, version)
    ]
    if made_by == [TRAIN_VERSION]:
        return None
    version = f"version {made_by[0]}" if made_by else "another version"
    return f"{run.name} was made by {version} of training, here is {TRAIN_VERSION}{advice(chain)}"


def advice(chain: Lineage) -> str:
    commit = chain["code"].digest
    return f": git checkout {commit}" if commit else ", and its commit was not recorded"
