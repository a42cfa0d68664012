"""The progress bar of a notebook, with a stand-in for IPython."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from slm.progress import automatic, notebook, share


class Notebook:
    """IPython as far as it is used: what is displayed, and how it was updated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: list[Callable[[Any], None]] = []  # called where a cell ends
        events = SimpleNamespace(
            register=lambda name, call: self.ends.append(call),
            unregister=lambda name, call: self.ends.remove(call),
        )
        self.shell = SimpleNamespace(kernel=object(), execution_count=1, events=events)
        self.bars: list[list[str]] = []
        ipython: Any = ModuleType("IPython")
        ipython.get_ipython = lambda: self.shell
        display: Any = ModuleType("IPython.display")
        display.HTML = str
        display.display = self.display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, content: str, *, display_id: bool) -> Any:
        assert display_id
        self.bars.append(bar := [content])
        return SimpleNamespace(update=bar.append)

    def end_cell(self, *, success: bool = True) -> None:
        for call in list(self.ends):
            call(SimpleNamespace(success=success))
        self.shell.execution_count += 1


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    monkeypatch.setattr("slm.progress.UPDATE_SECONDS", 0)
    return Notebook(monkeypatch)


def test_a_cell_has_one_bar_that_is_updated_in_place(cells: Notebook) -> None:
    automatic("loss 3 <b>", 1, 4)
    automatic("loss 2", 4, 4)
    automatic("reading", 1234, None)
    cells.shell.execution_count = 2
    automatic("loss 1", 1, 2)
    assert [len(bar) for bar in cells.bars] == [3, 1]
    first, last, unknown = cells.bars[0]
    assert '<progress value="1" max="4"></progress> 25% loss 3 &lt;b&gt;' in first
    assert "100% loss 2" in last
    assert "<progress></progress> 1,234 reading" in unknown


def test_updates_are_few_but_the_end_is_shown(
    cells: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells.shell.execution_count = 7
    monkeypatch.setattr("slm.progress.UPDATE_SECONDS", 3600)
    for step in range(1, 101):
        automatic("step", step, 100)
    assert [content.partition("> ")[2] for content in cells.bars[0]] == ["1% step", "100% step"]


def test_the_bar_of_a_cell_that_has_ended_is_at_its_end(cells: Notebook) -> None:
    for success, last in (
        (True, 'value="1" max="1"></progress> 100% sampling'),
        (False, 'value="5"'),
    ):
        automatic("texts", 3, None)
        automatic("sampling", 5, 6)
        cells.end_cell(success=success)
        assert last in cells.bars[-1][-1]
        assert not cells.ends
    automatic("duplicates", 0, None)  # whose end is not known
    cells.end_cell(success=False)
    assert 'value="0" max="1"' in cells.bars[-1][-1]


def test_elsewhere_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = lambda: object()  # IPython in a terminal has no kernel
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.delitem(sys.modules, "IPython.display", raising=False)
    automatic("step", 1, 2)
    assert notebook() is None


def test_what_has_only_begun_shows_no_count() -> None:
    assert [share(0, 4), share(3, 4), share(1200, None)] == ["0%", "75%", "1,200"]
    assert share(0, None) == "…"
