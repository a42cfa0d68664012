"""A lineage as a picture: the chain runs down, what went into a link stands at its right."""

from html import escape

from slm.history.lineage import Lineage, Link

BOX, SIDE, HEIGHT, GAP = 340, 380, 46, 14  # pixels: width, left edge of the right column, …
TEXT = 48  # characters of a line


def lineage_svg(lineage: Lineage) -> str:
    """An inline SVG of the chain. The same lineage gives the same text; all of it is escaped.

    It takes the colour of the text around it, so it can be read on light and on dark pages.
    """
    links = {link.name: link for link in lineage.links}
    beside = {name for link in lineage.links for name in link.made_from[1:]}
    parts: list[str] = []
    y, before = 0, None
    for link in (link for link in lineage.links if link.name not in beside):
        inputs = [links[name] for name in link.made_from[1:] if name in links]
        own = y + max(0, len(inputs) - 1) * (HEIGHT + GAP)
        if before is not None:
            parts.append(_line(BOX // 2, before, BOX // 2, own))
        for row, given in enumerate(inputs):
            top = y + row * (HEIGHT + GAP)
            parts.append(_line(BOX, own + HEIGHT // 2, SIDE, top + HEIGHT // 2))
            parts.append(_box(given, SIDE, top))
        parts.append(_box(link, 0, own))
        before = own + HEIGHT
        y = before + GAP
    return (
        f'<svg class="lineage" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="-1 -1 {SIDE + BOX + 2} {y - GAP + 2}" width="100%" font-size="12" '
        f'font-family="inherit" aria-label="{escape(f"Lineage of {lineage.name}")}">'
        f"{''.join(parts)}</svg>"
    )


def _box(link: Link, x: int, y: int) -> str:
    hover = "\n".join((link.value, link.digest or ""))
    return (
        f'<g transform="translate({x} {y})"><title>{escape(hover)}</title>'
        f'<rect width="{BOX}" height="{HEIGHT}" rx="5" fill="none" stroke="currentColor" '
        f'stroke-opacity="0.35"/>'
        f'<text x="10" y="20" fill="currentColor" font-weight="bold">{escape(link.name)}</text>'
        f'<text x="{BOX - 10}" y="20" fill="currentColor" fill-opacity="0.7" text-anchor="end">'
        f"{escape((link.digest or '')[:12])}</text>"
        f'<text x="10" y="38" fill="currentColor">{escape(_shorten(link.value))}</text></g>'
    )


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT else line[: TEXT - 1] + "…"


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="currentColor" '
        f'stroke-opacity="0.35"/>'
    )
