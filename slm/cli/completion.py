"""What a shell completes besides the names of commands and options: recipes, runs, settings.

Nothing heavy is imported here, and nothing raises: a person is in the middle of a line.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from slm.config import data_root, project_root
from slm.errors import SlmError
from slm.recipes import dotted_keys, find_recipes, sections
from slm.run_folder import CHECKPOINTS, CONFIG


def recipe_names(incomplete: str) -> list[str]:
    """The recipes, shipped and of `pipelines.yaml`."""
    names: list[str] = []
    with _quietly():
        names = list(find_recipes())
    return [name for name in names if name.startswith(incomplete)]


def run_names(incomplete: str) -> list[str]:
    """The runs of the data folder, the newest first."""
    folders: list[tuple[float, str]] = []
    with _quietly():
        for path in (data_root() / "runs").glob("[!.]*"):
            if path.name.startswith(incomplete) and (path / CHECKPOINTS).is_dir():
                with suppress(OSError):
                    folders.append((-(path / CONFIG).stat().st_mtime, path.name))
    return [name for _, name in sorted(folders)]


def run_references(incomplete: str) -> list[str]:
    """What names a run: its name, or `latest`."""
    names = run_names(incomplete)
    return [*names, "latest"] if run_names("") and "latest".startswith(incomplete) else names


def recipe_and_sweep_names(incomplete: str) -> list[str]:
    """What a sweep may be of."""
    names: list[str] = []
    with _quietly():
        from slm.sweeps.definition import sweep_names

        names = sweep_names()
    return [*recipe_names(incomplete), *(n for n in names if n.startswith(incomplete))]


def recipe_and_run_names(incomplete: str) -> list[str]:
    """What may be trained or planned."""
    return [*recipe_names(incomplete), *run_references(incomplete)]


def shard_names(incomplete: str) -> list[str]:
    return _folders("shards", incomplete)


def result_names(incomplete: str) -> list[str]:
    """The runs, shards, vocabularies and sources of the data folder."""
    kinds = ("shards", "tokenizers", "sources")
    return [*run_names(incomplete), *(n for kind in kinds for n in _folders(kind, incomplete))]


def _folders(kind: str, incomplete: str) -> list[str]:
    with _quietly():
        paths = (data_root() / kind).glob("[!.]*-*")
        return sorted(p.name for p in paths if p.is_dir() and p.name.startswith(incomplete))
    return []


def assignments(incomplete: str) -> list[str]:
    """The settings that `--set` takes, each with its `=`."""
    return [f"{key}=" for key in dotted_keys() if key.startswith(incomplete)]


def settings_and_recipes(incomplete: str) -> list[str]:
    """What `slm recipes` takes: a recipe, a setting, a section."""
    keys = [key for key in (*sections(), *dotted_keys()) if key.startswith(incomplete)]
    return [*recipe_names(incomplete), *keys]


def benchmark_names(incomplete: str) -> list[str]:
    with _quietly():
        scripts = (project_root() / "benchmarks").glob("[a-z]*.py")
        return sorted(path.stem for path in scripts if path.stem.startswith(incomplete))
    return []


@contextmanager
def _quietly() -> Iterator[None]:
    """Ignore what cannot be read: no project, no data folder, a broken file."""
    with suppress(SlmError, OSError):
        yield
