"""Relative paths of a recipe, which are below its own folder; of overrides, below this one."""

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.recipes.fields import mapping


def with_paths(fields: dict[str, Any], changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields with absolute paths, except what overrides, `changes`, give.

    Args:
        folder: the recipe's own.
    """
    placed = _with_paths_of_texts(fields, changes, folder)
    if "path" not in mapping(mapping(changes.get("data")).get("tokenizer")):
        placed = _with_tokenizer_path(placed, folder)
    if "tasks" not in mapping(changes.get("benchmark")):
        placed = _with_task_paths(placed, folder)
    if "init_from" not in mapping(changes.get("train")):
        placed = _with_start_path(placed, folder)
    return placed


def _with_paths_of_texts(
    fields: dict[str, Any], changes: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The same, with absolute paths of local files and of functions: of `data`, and each source."""
    data, changed = mapping(fields.get("data")), mapping(changes.get("data"))
    if not data:
        return fields
    placed = _with_function_paths(_with_path(data, changed, folder), changed, folder)
    sources, of_sources = mapping(data.get("sources")), mapping(changed.get("sources"))
    if sources:
        placed["sources"] = {
            name: _with_function_paths(_with_path(text, own, folder), own, folder)
            if isinstance(text, dict)
            else text
            for name, text in sources.items()
            for own in [mapping(of_sources.get(name))]
        }
    return {**fields, "data": placed}


def _with_path(text: dict[str, Any], changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of one text, with a relative path of local files as one below the folder of the
    recipe, unless an override gives it, of `changes`.
    """
    path = text.get("path")
    if "path" in changes or text.get("source") != "files" or not isinstance(path, str) or not path:
        return text
    if Path(path).is_absolute() or path.startswith("~") or "://" in path:
        return text
    above = str(folder.resolve())
    placed = Path(glob.escape(above) if glob.has_magic(path) else above, path)
    return {**text, "path": os.path.normpath(placed)}


def _with_function_paths(
    text: dict[str, Any], changes: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The settings of one text, with absolute paths of the files of functions.

    A relative one is below the folder of the recipe; where an override gives it, of `changes`,
    below the working folder.
    """
    clean, changed, placed = mapping(text.get("clean")), mapping(changes.get("clean")), {}
    for kind in ("map", "filter"):
        function = clean.get(kind)
        if isinstance(function, str) and ".py:" in function and not function.startswith("~"):
            above = Path.cwd() if kind in changed else folder.resolve()
            placed[kind] = os.path.normpath(above / function)
    return {**text, "clean": {**clean, **placed}} if placed else dict(text)


def _with_tokenizer_path(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same, with a relative path of a given tokenizer as one below the folder of the recipe."""
    data = mapping(fields.get("data"))
    section = mapping(data.get("tokenizer"))
    path = section.get("path")
    if not isinstance(path, str) or not path or path.startswith(("hf:", "~", "/")):
        return fields
    placed = {**section, "path": os.path.normpath(folder.resolve() / path)}
    return {**fields, "data": {**data, "tokenizer": placed}}


def _with_task_paths(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same, with relative paths of tasks as ones below the folder of the recipe."""
    section = mapping(fields.get("benchmark"))
    tasks = section.get("tasks")
    if not isinstance(tasks, list | tuple) or not all(isinstance(task, str) for task in tasks):
        return fields
    placed = [_placed_task(task, folder.resolve()) for task in tasks]
    return {**fields, "benchmark": {**section, "tasks": placed}}


def _placed_task(task: str, folder: Path) -> str:
    """A task with an absolute path; a built-in one, or one of the hub, stays as it is."""
    name, equals, path = task.rpartition("=")
    is_path = "/" in path or equals or (folder / path).is_file()
    if path.startswith(("~", "hf:", "/")) or not path or not is_path:
        return task
    return f"{name}{equals}{os.path.normpath(folder / path)}"


def _with_start_path(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same, with `train.init_from` below the folder of the recipe where such a folder is there.

    Else it is the name of a run, of a version or of a model of the hub.
    """
    train = mapping(fields.get("train"))
    text = train.get("init_from")
    if not isinstance(text, str) or text.startswith(("models:", "~")):
        return fields
    scheme = "hf:" if text.startswith("hf:") else ""
    placed = folder.resolve() / text.removeprefix(scheme)
    if Path(text.removeprefix(scheme)).is_absolute() or not (placed / "config.json").is_file():
        return fields
    return {**fields, "train": {**train, "init_from": f"{scheme}{os.path.normpath(placed)}"}}
