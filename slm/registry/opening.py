"""What a name means: a run, or a model, by its folder, its name or its version in the registry.

What is heavy, PyTorch and MLflow, is imported only where it is needed: most names are folders.
"""

import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from slm.errors import UserError, excerpt
from slm.machine import has_mps
from slm.records import Checkpoint, Run, Version, names_version
from slm.run_folder import DataRoot, RunFolder, run_of_checkpoint

if TYPE_CHECKING:
    from slm.model.saved import LoadedModel
    from slm.registry.version import ModelVersion

MAX_NAME = 255  # bytes of a file's name


Given: TypeAlias = "str | Path | RunFolder | Run | Checkpoint | Version | ModelVersion"
FORMS = "a run or its name, the beginning of its key, latest, a folder, or NAME@champion"


def open_run(run: "Given", root: Path | None = None) -> RunFolder:
    """A run, finished or not: its settings, plan, journal, checkpoints and results.

    >>> slm.open_run("slm@champion").evaluation.val_bpb

    Args:
        run: its folder; its name under `data/runs`, or the beginning of its key there, of four
            digits or more; `latest`, the one that was started last; a model version made from it:
            `NAME@ALIAS`, `models:/NAME/VERSION`, or `models:/NAME`, which is its champion, or its
            newest version where there is none; or its record, as `slm.train` returns it.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError where there is no such run, with the nearest name.
    """
    reference = reference_to(run)
    if not names_version(reference):
        return DataRoot(root).run(reference)
    from slm.registry.versions import resolve

    folder = run_of_checkpoint(resolve(reference, root))
    if folder is None:
        raise UserError(f"the run of {reference} is not on this machine: only its files are")
    return folder


def reference_to(given: "Given") -> str:
    """How a command would name a run or a model. Raises UserError for what is neither."""
    if isinstance(given, RunFolder | Run | Checkpoint):
        return str(given.path)
    uri = getattr(given, "uri", None)  # of a version
    if isinstance(uri, str):
        return uri
    if not isinstance(given, str | Path):
        raise UserError(f"{reprlib.repr(given)} is neither a run nor a model: give {FORMS}")
    if any(len(part.encode("utf-8", "replace")) > MAX_NAME for part in Path(given).parts):
        raise UserError(f"{excerpt(given)!r} is too long for the name of a file: give {FORMS}")
    return str(given)


def finished_run(run: "Given") -> tuple[RunFolder, Run]:
    """A finished run and its verified record. Raises UserError for any other."""
    folder = open_run(run)
    record = folder.verified_record
    if record is None:
        raise UserError(
            f"the run {folder.name!r} is not finished: `slm train {folder.name}` resumes it, and "
            f"`slm finish {folder.name}` makes a finished run of its last checkpoint"
        )
    return folder, record


def model_folder(model: "Given", root: Path | None = None) -> Path:
    """The folder with a model's files: a run's best checkpoint, a version's files, or itself."""
    from slm.model.saved import MODEL
    from slm.registry.versions import resolve

    reference = reference_to(model)
    path = Path(reference)
    return path.resolve() if (path / MODEL).is_file() else resolve(reference, root)


def load_model(
    model: "Given", *, device: str | None = None, root: Path | None = None
) -> "LoadedModel":
    """A model in evaluation mode, with its tokenizer, to sample from or to score with.

    >>> model = slm.load_model("slm@champion")
    >>> [sample] = slm.sample(model, "Once upon a time", temperature=0.8, top_k=50, seed=1)

    Args:
        model: a run, as of `open_run`, of which the best checkpoint is taken; a model version; or
            a folder with a model's files, such as a checkpoint's.
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
