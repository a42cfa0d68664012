"""What a name means: a run, or a model, by its folder, its name or its version in the registry.

What is heavy, PyTorch and MLflow, is imported only where it is needed: most names are folders.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from slm.errors import UserError
from slm.machine import has_mps
from slm.records import Run
from slm.run_folder import DataRoot, RunFolder, run_of_checkpoint

if TYPE_CHECKING:
    from slm.model.saved import LoadedModel


def open_run(run: str | Path | Run, root: Path | None = None) -> RunFolder:
    """A run, finished or not: its settings, plan, journal, checkpoints and results.

    >>> slm.open_run("models:/slm@champion").evaluation.val_bpb

    Args:
        run: its folder, its name under `data/runs`, the URI of a model version made from it, or
            its record, as `slm.train` returns it.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError where there is no such run, with the nearest name.
    """
    if isinstance(run, Run):
        return RunFolder.of(run)
    if not str(run).startswith("models:"):
        return DataRoot(root).run(str(run))
    from slm.registry.versions import resolve

    folder = run_of_checkpoint(resolve(str(run), root))
    if folder is None:
        raise UserError(f"the run of {run} is not on this machine: only its files are")
    return folder


def finished_run(run: str) -> tuple[RunFolder, Run]:
    """A finished run and its verified record. Raises UserError for any other."""
    folder = open_run(run)
    record = folder.verified_record
    if record is None:
        raise UserError(
            f"the run {folder.name!r} is not finished: `slm train {folder.name}` resumes it, and "
            f"`slm finish {folder.name}` makes a finished run of its last checkpoint"
        )
    return folder, record


def model_folder(model: str | Path | RunFolder | Run, root: Path | None = None) -> Path:
    """The folder with a model's files: a run's best checkpoint, a version's files, or itself."""
    from slm.model.saved import MODEL
    from slm.registry.versions import resolve

    if isinstance(model, RunFolder | Run):
        model = model.path
    path = Path(model)
    return path.resolve() if (path / MODEL).is_file() else resolve(str(model), root)


def load_model(
    model: str | Path | RunFolder | Run, *, device: str | None = None, root: Path | None = None
) -> "LoadedModel":
    """A model in evaluation mode, with its tokenizer, to sample from or to score with.

    >>> model = slm.load_model("models:/slm@champion")
    >>> [sample] = slm.sample(model, "Once upon a time", temperature=0.8, top_k=50, seed=1)

    Args:
        model: a run or its name, of which the best checkpoint is taken; the URI of a model
            version; or a folder with a model's files, such as a checkpoint's.
        device: "cpu", "cuda" or "mps"; None: what the run's `train.device` allows.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError where there is no such model; CorruptionError where a file is damaged.
    """
    import torch

    import slm.evaluation.evaluate
    import slm.model.saved

    folder = model_folder(model, root)
    device = device or slm.evaluation.evaluate.device_of(folder)
    kind, _, _ = device.partition(":")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": has_mps()}
    if not available.get(kind):
        raise UserError(f"device={device!r}: give cpu, or cuda or mps where torch sees such a GPU")
    return slm.model.saved.load_model(folder, device)
