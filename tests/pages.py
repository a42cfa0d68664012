"""The Markdown pages of the repository: their blocks of code, links and headings."""

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data" / "README.md",
]
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<mark>.+?) -->\n)?(?P<ticks>```+)(?P<language>\w*)[^\n]*\n"
    r"(?P<code>.*?)^(?P=ticks)$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: str
    number: int  # of its page, from 1
    language: str
    code: str
    not_run: str | None  # why it is not executed

    def commands(self) -> Iterator[list[str]]:
        """The words of every command, continued lines joined."""
        for line in self.code.replace("\\\n", " ").splitlines():
            for command in re.split(r" && ", line):
                if words := shlex.split(command, comments=True):
                    yield words


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """Every block of a page, in order."""
    matches = _FENCE.finditer(page.read_text("utf-8"))
    return tuple(
        Block(page.name, number, match["language"], match["code"], match["mark"])
        for number, match in enumerate(matches, 1)
    )


def blocks(language: str) -> list[Block]:
    """Every block in a language."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def prose(text: str) -> str:
    """The text of a page without its blocks of code."""
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """What the links and pictures of a page lead to, but not to other hosts."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(text)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {anchor(heading) for heading in headings}


def anchor(heading: str) -> str:
    """`The gate: 95 %` → `the-gate-95`; as Python-Markdown does it.

    GitHub keeps two hyphens where a sign between blanks is left out; a heading that is linked to
    has no such sign.
    """
    plain = re.sub(r"[`*]|\]\(.*?\)|\[", "", heading)
    plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def github_anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"[`*]|\]\(.*?\)|\[", "", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
