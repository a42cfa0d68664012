"""Small datasets, and what is true of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub, serve_this_process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, whose results go into its own `data`."""
    monkeypatch.delenv("SLM_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine; its client does not sleep between two attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serve_this_process(tmp_path / "hf", monkeypatch) as server:
        yield server
