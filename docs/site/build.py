"""Build the documentation site: the pages of `docs/`, and the reference that the code gives.

    python docs/site/build.py [FOLDER]     # build/docs/site/index.html

The pages are copied to FOLDER/pages, where links to files of the repository outside of `docs/`
become links to a page that shows the file, and each light picture gets its dark form. Then Zensical
builds them, and a warning (a page or an anchor that does not exist) is an error.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(HERE)]

import reference  # noqa: E402

OTHER_PAGES = {  # of the repository, that are pages of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/README.md": "reference/files.md",
}
ASSETS = {".svg", ".png", ".webp", ".css", ".js", ".ipynb"}
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)-light\.webp\)")
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"^(```+).*?^\1$", flags=re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "bash"}


def stage(pages: Path) -> None:
    """Write every page of the site, as Markdown."""
    shutil.rmtree(pages, ignore_errors=True)
    shown: set[Path] = set()
    sources = {path: path.name for path in (ROOT / "docs").glob("*.md")}
    sources |= {
        ROOT / page: name
        for page, name in OTHER_PAGES.items()
        if page not in ("README.md", "data/README.md")
    }
    for path, name in sources.items():
        text = path.read_text("utf-8")
        write(pages / name, with_links(text, path, name, shown))
    for name, text in reference.pages().items():
        origin = ROOT / ("data/README.md" if name == "files.md" else "docs/reference/x.md")
        write(pages / "reference" / name, with_links(text, origin, f"reference/{name}", shown))
    for path in sorted(shown):
        name = path.relative_to(ROOT).as_posix()
        write(pages / "source" / f"{name}.md", source_page(name, path.read_text("utf-8")))
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix in ASSETS and HERE not in path.parents:
            copy(path, pages / path.relative_to(ROOT / "docs"))


def with_links(text: str, path: Path, name: str, shown: set[Path]) -> str:
    """The text of a page with its links as links of the site; `shown` gets the files it names."""

    def page_of(match: re.Match[str]) -> str:
        link = match[1]
        if re.match(r"[a-z]+:|#", link):
            return link
        file, _, anchor = link.partition("#")
        target = Path(os.path.normpath(path.parent / file))
        end = f"#{anchor}" if anchor else ""
        return os.path.relpath(place_of(target, shown), Path(name).parent) + end

    return "".join(
        part if part.startswith("```") else LINK.sub(page_of, with_dark(part))
        for part in outside(text)
    )


def with_dark(text: str) -> str:
    """The text with each light picture followed by its dark one; the theme shows one of them."""
    return PICTURE.sub(r"![\1](\2-light.webp#only-light)![\1](\2-dark.webp#only-dark)", text)


def outside(text: str) -> Iterator[str]:
    """The text in parts: code blocks, and what is between them."""
    end = 0
    for fence in FENCE.finditer(text):
        yield text[end : fence.start()]
        yield fence[0]
        end = fence.end()
    yield text[end:]


def place_of(target: Path, shown: set[Path]) -> str:
    """Where a file of the repository is in the site."""
    name = target.relative_to(ROOT).as_posix()
    if name in OTHER_PAGES:
        return OTHER_PAGES[name]
    inside = name.removeprefix("docs/")
    if inside != name and (target.suffix in ASSETS or target.suffix == ".md"):
        return inside
    if target.is_dir():
        target /= "__init__.py"
        name = f"{name}/__init__.py"
    if target.is_file():
        shown.add(target)
    return f"source/{name}.md"


def source_page(name: str, text: str) -> str:
    """A page that shows a file of the repository."""
    language = LANGUAGES.get(Path(name).suffix, "text")
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {name.rpartition('/')[2]}\n\n`{name}`"
    return f"{head}\n\n````{language}\n{text.rstrip()}\n````\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def main() -> int:
    folder = Path(sys.argv[1] if sys.argv[1:] else ROOT / "build" / "docs").resolve()
    stage(folder / "pages")
    copy(HERE / "zensical.toml", folder / "zensical.toml")
    for name in ("extra.css", "extra.js"):
        copy(HERE / name, folder / "pages" / name)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder)
    if done.returncode == 0:
        print(folder / "site" / "index.html")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
