"""Linters that `pip install -e '.[dev]'` brings as programs."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """The path of a program of this environment, or on PATH; without it the test is skipped."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = shutil.which(name, path=folders)
    if path is None:
        pytest.skip(f"needs {name}, of the extra dev")
    return path
