"""What the commands that look back show in the terminal: trees, listings, two runs side by side."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from slm.cli.tables import number
from slm.history.compare import Comparison
from slm.history.lineage import Lineage, Link, State

STYLES: dict[State, str] = {
    "unchanged": "green",
    "changed": "bold red",
    "gone": "bold red",
    "not checked": "dim",
}
SAMPLES = 3  # pairs that are shown
WHOLE = ("name", "state", "aliases", "verdict", "val_bpb", "step", "seconds")  # never broken


def lineage(chain: Lineage) -> RenderableType:
    """The chain as a tree: the result at its root, what it was made of below it."""
    links = {link.name: link for link in chain.links}
    last = chain.links[-1]
    tree = Tree(_link(last), guide_style="dim")
    _grow(tree, last, links)
    broken = [f"{link.name} {link.state}" for link in chain.broken]
    verdict = Text(", ".join(broken), "bold red") if broken else Text("nothing is gone or changed")
    return Group(tree, verdict)


def _grow(tree: Tree, link: Link, links: dict[str, Link]) -> None:
    for name in link.made_from:
        _grow(tree.add(_link(links[name])), links[name], links)


def _link(link: Link) -> Text:
    text = Text.assemble(
        (f"{link.name:<11} ", "bold"),
        link.value,
        (f"  {link.digest[:12]}" if link.digest else "", "cyan"),
        (
            f"  {len(link.files)} {'file' if len(link.files) == 1 else 'files'}"
            if link.files
            else "",
            "dim",
        ),
        (f"  {link.state}", STYLES[link.state]),
    )
    for note in link.notes:
        text.append(f"\n{note}", "red" if link.state in ("gone", "changed") else "dim")
    return text


def listing(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table of facts; numbers stand on the right, what is not known is a dash."""
    filled = list(rows)
    table = Table(box=None, pad_edge=False)
    for column, name in enumerate(names):
        numeric = any(isinstance(row[column], int | float) for row in filled)
        justify: Literal["right", "left"] = "right" if numeric else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in WHOLE)
    for row in filled:
        table.add_row(*(Text("–" if cell in (None, "") else number(cell)) for cell in row))
    return table


def size(count: int) -> str:
    """Bytes for a person."""
    if count < 1000:
        return f"{count} B"
    value, power = float(count), 0
    while value >= 1000 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def comparison(found: Comparison) -> RenderableType:
    """Two runs side by side."""
    pairs = ((name, *(str(v) for v in values)) for name, values in found.config.items())
    settings = listing(("setting", "A", "B"), pairs)
    measured = ((n, *map(_figure, values)) for n, values in found.figures.items())
    figures = listing(("figure", "A", "B"), measured)
    rows = ((tokens, a, b, b - a) for tokens, a, b in found.at_equal_tokens)
    curves = listing(("tokens", "val_bpb of A", "of B", "B - A"), rows)
    if found.interval:
        count = f"{found.interval.documents:,} documents, paired bootstrap"
        verdict = f"{found.interval.sentence}, B - A, 95 % interval over {count}"
    else:
        verdict = f"no interval: {found.no_interval}"
    parts: list[RenderableType] = [Text(f"A  {found.a}\nB  {found.b}\n\n{verdict}"), ""]
    parts += [settings if found.config else "the same settings", "", figures, ""]
    parts += [curves, ""] if found.at_equal_tokens else []
    for pair in found.samples[:SAMPLES]:
        title = Text(f"{pair.prompt} …  (temperature {pair.temperature:g}, top_k {pair.top_k})")
        texts = (Panel(Text(pair.a.lstrip()), title="A"), Panel(Text(pair.b.lstrip()), title="B"))
        parts += [title, Columns(texts, equal=True, expand=True), ""]
    return Group(*parts[:-1])


def _figure(value: float | None) -> float | int | None:
    """Counts as whole numbers, and what is large enough that decimals say nothing."""
    if value is None:
        return None
    return round(value) if value >= 100 or float(value).is_integer() else value
