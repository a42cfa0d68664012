"""What every page of ours is rendered with: templates that escape, the stylesheet, the head."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent


def environment(*folders: Path) -> "Environment":
    """Jinja over templates of some folders and the report's; HTML is escaped as it is filled in.

    `head.html.j2` is the head of a page, of a `title` and a `css`: its policy allows no scripts and
    no addresses.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([*folders, _FOLDER]),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def stylesheet(*more: Path) -> str:
    """The look of every page, and what some pages add to it."""
    return "".join(path.read_text("utf-8") for path in (_FOLDER / "page.css", *more))
