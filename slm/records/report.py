"""The record of a report, which shows itself in a notebook."""

from contextlib import suppress
from html import escape

from slm.records.record import Record


class Report(Record):
    """The report of a run: `index.html`, `report.md`, the model card, the samples they show."""

    run: str
    html: str = "index.html"
    markdown: str = "report.md"
    card: str = "README.md"

    def _repr_html_(self) -> str | None:
        """The page, in a frame: what a notebook shows."""
        page = self._read(self.html)
        if page is None:
            return None
        style = "width: 100%; height: 45em; border: 0"
        return f'<iframe srcdoc="{escape(page)}" sandbox="allow-popups" style="{style}"></iframe>'

    def _repr_markdown_(self) -> str | None:
        """The same as Markdown: what a notebook shows where it shows no frames."""
        return self._read(self.markdown)

    def _read(self, name: str) -> str | None:
        with suppress(OSError):  # it was deleted, or is elsewhere
            return (self.path / name).read_text("utf-8")
        return None
