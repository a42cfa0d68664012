"""The folders of a project: that of its `pipelines.yaml`, and that of everything produced."""

import os
from pathlib import Path

from slm.errors import UserError, check_utf8

PIPELINES = "pipelines.yaml"  # of a project: its recipes and deployments


def project_root() -> Path:
    """The folder of `pipelines.yaml`: the nearest one, from the working folder upwards.

    Where there is none it is the working folder: the shipped recipes need no file.
    """
    here = Path.cwd()
    above = (folder for folder in (here, *here.parents) if (folder / PIPELINES).is_file())
    return next(above, here)


def checkout() -> Path | None:
    """The folder of this project's own repository; None where slm is installed from a wheel."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").is_file() else None


def data_root() -> Path:
    """The folder of everything produced: `SLM_DATA`, else `data/` in `project_root`."""
    given = os.environ.get("SLM_DATA")
    path = Path(given).expanduser().resolve() if given else project_root() / "data"
    check_utf8(str(path), "the data folder", "point SLM_DATA elsewhere")
    if "?" in str(path):  # the address of a SQLite file ends there
        raise UserError(f"the data folder {path} has a '?' in its path: point SLM_DATA elsewhere")
    if path.exists() and not path.is_dir():
        raise UserError(f"the data folder {path} is a file: point SLM_DATA at a folder")
    return path
