"""What differs from a commit: the sha256 moves with every byte that can change a result."""

import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from slm.code_state import BUILD, modules_sha256, state_of
from slm.training import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with a package `slm`, which the provenance module treats as its own."""
    for name in ("report", "training"):
        (tmp_path / "slm" / name).mkdir(parents=True)
    (tmp_path / "slm" / "training" / "provenance.py").write_text("value = 1\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "slm" / "training" / "provenance.py")
    )
    yield tmp_path
    provenance.code_state.cache_clear()


def state() -> dict[str, Any]:
    """The state of the code now, not as it was at the first call."""
    provenance.code_state.cache_clear()
    return provenance.code_state()


def difference() -> str | None:
    digest: str | None = state()["diff_sha256"]
    return digest


def test_every_byte_of_code_counts_and_nothing_else(checkout: Path) -> None:
    assert difference() is None
    (checkout / "notes.txt").write_text("in no package")
    (checkout / "slm" / "notes.txt").write_text("not imported")
    assert difference() is None

    seen = {difference()}
    for name in ("slm/training/provenance.py", "slm/new.py", "slm/report/page.html.j2"):
        for text in ("value = 2\n", "value = 3\n"):
            (checkout / name).write_text(text)
            seen.add(difference())
    assert len(seen) == 7

    (checkout / "slm" / "new.py").unlink()
    (checkout / "slm" / "report" / "page.html.j2").unlink()
    (checkout / "slm" / "training" / "provenance.py").write_text("value = 1\n")
    assert difference() is None
    assert state()["dirty"] is False


def test_outside_a_checkout_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "slm" / "training" / "provenance.py")
    )
    package = tmp_path / "slm"
    (package / "training").mkdir(parents=True)
    modules = modules_sha256(package)
    unknown = {"commit": None, "dirty": None, "diff_sha256": None}
    assert state() == {**unknown, "modules_sha256": modules}
    (package / "new.py").touch()
    assert modules_sha256(package) != modules


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"commit": null}'])
def test_an_installation_whose_record_is_damaged_is_dirty(content: str, tmp_path: Path) -> None:
    (tmp_path / BUILD).write_text(content)
    assert (state_of(tmp_path)["commit"], state_of(tmp_path)["dirty"]) == (None, True)


# ---- packages -----------------------------------------------------------------------------------


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What is installed is looked at anew, before the test and after it."""
    provenance.packages.cache_clear()
    yield
    provenance.packages.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_packages_are_those_that_the_standard_library_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {
        "Big_Name-1.0.dist-info/METADATA": "Name: Big.Name\nVersion: 1.0\n\nName: x\nVersion: 9\n",
        "dos-2.dist-info/METADATA": "Metadata-Version: 2.1\r\nVERSION:  2 \r\nname: dos\r\n\r\nx",
        "old.egg-info/PKG-INFO": "Metadata-Version: 1\nName: old\nVersion: 0.1\nSummary: a\n  b\n",
    }
    damaged = {"nameless-3.dist-info/METADATA": "Version: 3\n\nName: x\n", "e.dist-info/RECORD": ""}
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    write(tmp_path, described)
    listed = {d.metadata["Name"]: d.version for d in distributions()}
    write(tmp_path, damaged)
    assert provenance.packages() == dict(sorted(listed.items()))
    assert listed == {"Big.Name": "1.0", "dos": "2 ", "old": "0.1"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(text.encode())
