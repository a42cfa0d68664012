"""The pictures of the documentation: all are there, they are small, and they name no machine."""

import re
import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_BYTES = 2_000_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_of_a_page_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text)
    links += re.findall(r"<(?:img|source)[^>]*\ssrc(?:set)?=\"([^\"]+)\"", text)
    local = [link for link in links if not link.startswith(("http", "data:"))]
    assert [link for link in local if not (page.parent / link).is_file()] == []


def test_the_pictures_are_light_and_dark_and_small() -> None:
    files = sorted(IMAGES.iterdir())
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    modes: dict[str, set[str]] = {}
    for file in files:
        if file.suffix == ".webp":
            name, _, mode = file.stem.rpartition("-")
            modes.setdefault(name, set()).add(mode)
    assert modes
    assert all(each == {"light", "dark"} for each in modes.values())
    for name in modes:
        light, dark = ((IMAGES / f"{name}-{mode}.webp").read_bytes() for mode in ("light", "dark"))
        assert light != dark, name  # a page that does not follow the mode is photographed twice


def test_the_terminal_is_from_no_machine_and_needs_no_other_file() -> None:
    text = (IMAGES / "watch.svg").read_text("utf-8")
    assert re.findall(r"url\((?!#)|@import|(?:/home|/root|/tmp|/work|/Users)/", text) == []
    assert re.findall(r"https?://(?!www.w3.org)(?!\S*textualize)", text) == []


def test_without_a_browser_the_script_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    script = runpy.run_path(str(ROOT / "docs" / "screenshots.py"))
    with pytest.raises(SystemExit) as ended:
        script["find_browser"]()
    assert ended.value.code == 2
    assert "install one" in capsys.readouterr().err
