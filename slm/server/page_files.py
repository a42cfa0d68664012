"""The page at `/`: its files, and the headers that keep it from running or reaching anything else.

The style is that of the reports, `slm/report/page.css`, with what the page adds to it.
"""

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the files of an older slm would not fit
}


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files at `/page/NAME`; no key is needed to read them."""
    responses = {f"/page/{name}": content for name, content in page_files().items()}
    responses["/"] = responses.pop("/page/index.html")
    for path, content in responses.items():
        suffix = "." + path.rpartition(".")[2] if path != "/" else ".html"
        _add(app, path, content, CONTENT_TYPES[suffix])


def _add(app: FastAPI, path: str, content: bytes, content_type: str) -> None:
    async def serve() -> Response:
        return Response(content, headers=HEADERS, media_type=content_type)

    app.add_api_route(path, serve, methods=["GET", "HEAD"], include_in_schema=False)


def page_files() -> dict[str, bytes]:
    """The content of each file by its name; `house.css` is the style of the reports."""
    folder = files("slm.server") / "page"
    contents = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    return contents | {"house.css": (files("slm.report") / "page.css").read_bytes()}
