"""A lineage as a picture: the chain runs down, and each link's other inputs are to its right."""

from html import escape

from slm.history.lineage import Lineage, Link

WIDTH, RIGHT, HEIGHT, GAP = 340, 380, 46, 14  # pixels: of a box, left edge of the right column, …
MAX_TEXT = 48  # characters of a line


def lineage_svg(lineage: Lineage) -> str:
    """An inline SVG of the chain. The same lineage gives the same text; all of it is escaped.

    Links that another one names second or later in `made_from` are its inputs and go to the right,
    one row each; the link itself is in the last of these rows. All others are the chain:

        dataset                     made_from: shards = (source, cleaning, tokenizer)
        source                                 run = (shards, config, code)
                    ┌ cleaning
        shards ─────┴ tokenizer
                    ┌ config
        run ────────┴ code

    Colours are those of the text around it, so it is readable on light and on dark pages.
    """
    links = {link.name: link for link in lineage.links}
    inputs_of = {
        link.name: [links[name] for name in link.made_from[1:] if name in links]
        for link in lineage.links
    }
    on_the_right = {each.name for inputs in inputs_of.values() for each in inputs}
    parts: list[str] = []
    y, bottom = 0, None  # of the next row; of the chain's last box
    for link in (link for link in lineage.links if link.name not in on_the_right):
        inputs = inputs_of[link.name]
        top = y + max(0, len(inputs) - 1) * (HEIGHT + GAP)
        if bottom is not None:
            parts.append(_line(WIDTH // 2, bottom, WIDTH // 2, top))
        for row, each in enumerate(inputs):
            input_top = y + row * (HEIGHT + GAP)
            parts.append(_line(WIDTH, top + HEIGHT // 2, RIGHT, input_top + HEIGHT // 2))
            parts.append(_box(each, RIGHT, input_top))
        parts.append(_box(link, 0, top))
        bottom = top + HEIGHT
        y = bottom + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="-1 -1 {RIGHT + WIDTH + 2} {y - GAP + 2}" width="100%" font-size="12" '
        f'font-family="inherit" aria-label="{escape(f"Lineage of {lineage.name}")}">'
        f"{''.join(parts)}</svg>"
    )


def _box(link: Link, x: int, y: int) -> str:
    hover = "\n".join((link.value, link.digest or ""))
    return (
        f'<g transform="translate({x} {y})"><title>{escape(hover)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="5" fill="none" stroke="currentColor" '
        f'stroke-opacity="0.35"/>'
        f'<text x="10" y="20" fill="currentColor" font-weight="bold">{escape(link.name)}</text>'
        f'<text x="{WIDTH - 10}" y="20" fill="currentColor" fill-opacity="0.7" text-anchor="end">'
        f"{escape((link.digest or '')[:12])}</text>"
        f'<text x="10" y="38" fill="currentColor">{escape(_shorten(link.value))}</text></g>'
    )


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="currentColor" '
        f'stroke-opacity="0.35"/>'
    )
