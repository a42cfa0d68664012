"""What differs from a commit: the sha256 moves with every byte that can change a result."""

import subprocess
from pathlib import Path

import pytest

from slm.training import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package `slm`, which the provenance module takes for its own."""
    (tmp_path / "slm" / "report").mkdir(parents=True)
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
    return tmp_path


def difference() -> str | None:
    found: str | None = provenance.code_state.__wrapped__()["diff_sha256"]
    return found


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
    assert provenance.code_state.__wrapped__()["dirty"] is False


def test_outside_a_checkout_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "slm" / "training" / "provenance.py")
    )
    assert provenance.code_state.__wrapped__() == {
        "commit": None,
        "dirty": None,
        "diff_sha256": None,
    }
