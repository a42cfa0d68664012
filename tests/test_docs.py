"""The documentation: every page is in the site, every link leads somewhere, the reference is whole.

The site itself is built by a slow test, with Zensical; all else needs Python alone.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from pages import PAGES, ROOT, anchor, anchors, github_anchor, links, prose

import slm
from slm.cli.main import app
from slm.recipes import dotted_keys

SITE = ROOT / "docs" / "site"


def module(name: str) -> ModuleType:
    """A script of `docs/site`."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", SITE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the site as they are given to its generator."""
    pages = tmp_path_factory.mktemp("site") / "pages"
    module("build").stage(pages)
    return pages


def nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from nav(value) if isinstance(value, list) else [value]


# ---- pages and links ----------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once(staged: Path) -> None:
    config = tomllib.loads((SITE / "zensical.toml").read_text("utf-8"))
    listed = list(nav(config["project"]["nav"]))
    pages = {path.relative_to(staged).as_posix() for path in staged.rglob("*.md")}
    assert len(set(listed)) == len(listed)
    assert set(listed) == {page for page in pages if not page.startswith("source/")}


def dead(text: str, path: Path) -> list[str]:
    """The links of a page that lead to no file, or to no heading of a page."""
    return [link for link in links(text) if not leads_somewhere(link, path)]


def leads_somewhere(link: str, path: Path) -> bool:
    file, _, anchor = link.partition("#")
    target = Path(os.path.normpath(path.parent / file)) if file else path
    if not target.exists():
        return False
    if not anchor or target.suffix != ".md":  # `picture.webp#only-dark` is for the theme
        return True
    return anchor in anchors(target.read_text("utf-8"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    in_the_site = [link for link in dead(page.read_text("utf-8"), page) if "reference/" not in link]
    assert in_the_site == []  # the reference is there when the site is built: the next test


def test_every_link_of_the_site_leads_somewhere(staged: Path) -> None:
    pages = list(staged.rglob("*.md"))
    assert len(pages) > 30
    for page in pages:
        if "source" not in page.relative_to(staged).parts:
            assert dead(page.read_text("utf-8"), page) == [], page


def test_every_picture_of_the_site_has_its_dark_form(staged: Path) -> None:
    light, dark = (
        sorted(
            name
            for page in staged.glob("*.md")
            for name in re.findall(
                rf"\(([^)]*)-{mode}\.webp#only-{mode}\)", page.read_text("utf-8")
            )
        )
        for mode in ("light", "dark")
    )
    assert len(light) > 4
    assert light == dark
    assert all((staged / f"{name}-dark.webp").is_file() for name in dark)


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# The gate: 95 %\n[a](b.md) [b](#the-gate-95) [c](#gate) `[d](e.md)`\n")
    assert dead(page.read_text(), page) == ["b.md", "#gate"]


def test_a_heading_that_is_linked_to_has_one_anchor_in_the_site_and_on_github() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        linked = {link.partition("#")[2] for other in PAGES for link in links(other.read_text())}
        for heading in re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE):
            if anchor(heading) in linked:
                assert github_anchor(heading) == anchor(heading), f"{page.name}: {heading}"


def test_no_page_loads_anything_from_another_host(staged: Path) -> None:
    config = tomllib.loads((SITE / "zensical.toml").read_text("utf-8"))
    assert config["project"]["theme"]["font"] is False
    for page in staged.rglob("*.md"):
        if "source" not in page.relative_to(staged).parts:
            assert not re.search(
                r"!\[[^\]]*\]\(https?:|<(?:img|script|iframe)", prose(page.read_text())
            )
    assert "http" not in (SITE / "extra.css").read_text()


def test_messages_name_pages_that_exist() -> None:
    sources = [
        *(ROOT / "slm").rglob("*.py"),
        *(ROOT / "slm").rglob("*.j2"),
        ROOT / "pipelines.yaml",
    ]
    named = {
        n for path in sources for n in re.findall(r"(?<!co/)\bdocs/[\w/-]+\.\w+", path.read_text())
    }
    assert len(named) > 4
    for name in named:
        assert (ROOT / name).is_file(), name


FILES = (
    r"(?<![\w/.-])((?:slm|tests|benchmarks|flows|docs|data)/[\w./-]+\.(?:py|md|yaml|json|svg))\b"
)
OF_TESTS = r"`([a-z_]+/test_\w+\.py)(?:::(\w+))?`"  # below tests/
WRITTEN_LATER = {"slm/_build.json"}  # by a build


def test_the_files_that_a_page_names_exist() -> None:
    texts = [page.read_text("utf-8") for page in PAGES]
    named = {name for text in texts for name in re.findall(FILES, text)} - WRITTEN_LATER
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    tests = {match for text in texts for match in re.findall(OF_TESTS, text)}
    assert len(tests) > 20
    for file, name in sorted(tests):
        path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / file
        assert f"def {name}(" in path.read_text() if name else path.is_file(), (file, name)


# ---- the reference ------------------------------------------------------------------------------


def test_the_reference_has_every_command_setting_and_public_name(staged: Path) -> None:
    reference = staged / "reference"
    group: Any = typer.main.get_command(app)
    commands = (reference / "commands.md").read_text("utf-8")
    for name, command in group.commands.items():
        for full in [f"{name} {sub}" for sub in getattr(command, "commands", [])] or [name]:
            assert f"### slm {full}\n" in commands
    settings = (reference / "settings.md").read_text("utf-8")
    assert [key for key in dotted_keys() if f"| `{key}` |" not in settings] == []
    python = (reference / "python.md").read_text("utf-8")
    assert [name for name in slm.__all__ if f"## slm.{name}\n" not in python] == []
    assert " object at 0x" not in python
    assert "<function" not in python


def test_the_reference_has_every_environment_variable_of_the_code() -> None:
    reference = module("reference")
    code = "".join(path.read_text() for path in (ROOT / "slm").rglob("*.py"))
    read = set(re.findall(r"""["'](SLM_[A-Z_]+)["']""", code))
    assert read == {n for n in reference.ENVIRONMENT if n.startswith("SLM_")} | reference.INTERNAL
    assert all(f'"{name}"' in code for name in reference.ENVIRONMENT)


def test_a_table_of_the_reference_keeps_its_columns() -> None:
    table = module("reference").table
    assert table(("a", "b"), [("`x|y`", "<|user|> and *\n`<b>`")]).splitlines()[-1] == (
        "| `x\\|y` | &lt;\\|user\\|> and \\* `<b>` |"
    )


# ---- the commits that CONTRIBUTING shows -------------------------------------------------------


def test_the_commits_that_are_shown_exist() -> None:
    shown = re.findall(r"`([0-9a-f]{7})`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(shown) >= 4

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)

    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("without the history of git")
    for commit in shown:
        assert git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0, commit


# ---- the site -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_another_host(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    command = [sys.executable, str(SITE / "build.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?https?://[^>]*", page.read_text()
        )
        assert [each for each in loaded if "canonical" not in each] == []
