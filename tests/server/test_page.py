"""The page at `/`: nothing of others, nothing inline, no finding of axe in any of its states."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from served import in_process, listening, tiny_app

from slm.server.page_files import page_files

DRIVER = Path(__file__).with_name("look_at_page.cjs")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""


def get(*paths: str, key: str | None = None) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        with tiny_app(api_key=key) as app:
            async with in_process(app) as client:
                return [await client.get(path) for path in paths]

    return asyncio.run(run())


def test_every_file_is_served_with_a_policy_that_allows_nothing_of_others() -> None:
    links = set(re.findall(r'(?:href|src)="([^"]+)"', page_files()["index.html"].decode()))
    assert {"page/page.css", "page/house.css", "page/main.js"} <= links
    imports = set(re.findall(r'from "\./([\w.]+)"', page_files()["main.js"].decode()))
    paths = ["/", *(f"/{link}" for link in links), *(f"/page/{name}" for name in imports)]
    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "/": "text/html"}
    for response in get(*paths, key="secret"):  # which the page itself asks for
        assert response.status_code == 200, response.url
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        suffix = response.url.path.rpartition(".")[2]
        assert response.headers["content-type"].startswith(types[suffix])


def test_nothing_is_inline_fetched_from_elsewhere_or_read_as_html() -> None:
    for name, content in page_files().items():
        text = content.decode()
        addresses = set(re.findall(r"https?://[\w./]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", text)
    page = page_files()["index.html"].decode()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]* src=)", page)


def node_lacks(*modules: str) -> str:
    """Which of node's modules cannot be loaded; NODE_PATH names their folder."""
    if shutil.which("node") is None:
        return "node"
    for module in modules:
        command = ["node", "-e", f"require.resolve({module!r})"]
        if subprocess.run(command, capture_output=True).returncode:
            return module
    return ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_axe_has_no_serious_finding_in_any_state_of_the_page(tmp_path: Path) -> None:
    """Light, dark and on a phone; empty, written, alternatives shown, two versions, errors, key."""
    missing = node_lacks("puppeteer-core", "axe-core") or ("" if CHROMIUM else "chromium")
    if missing:
        pytest.skip(f"{missing} is not installed")
    with (
        tiny_app("one", "two") as app,
        tiny_app(api_key="secret") as locked,
        listening(app) as url,
        listening(locked) as locked_url,
    ):
        command = ["node", DRIVER, CHROMIUM, url, locked_url, tmp_path]
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    states = json.loads(done.stdout)
    assert len(states) == 9
    for state in states:
        assert state["errors"] == [], state
        assert [v for v in state["violations"] if v["impact"] in ("serious", "critical")] == []
        assert state["overflow"] <= 0, state["name"]
        assert state["as_expected"], state
