"""A small Hugging Face hub on 127.0.0.1: repositories with commits, and scripted faults.

It answers what `huggingface_hub` and `datasets` ask: repository info, trees, path infos, and files
by revision with HEAD, ETag, ranges and, for large files, a redirect to a storage host. With a token
it also makes repositories of models and takes commits, large files by the LFS protocol.
"""

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LFS_SUFFIXES = {".parquet", ".gz", ".zst", ".safetensors", ".gguf"}
Files = dict[str, bytes]


@dataclass
class Fault:
    """What goes wrong for requests whose `METHOD /path` contains `where`, `times` times."""

    where: str
    kind: str  # status, silence, stall, cut, reset, truncate, flip
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    line: str  # METHOD /path?query
    range: str | None
    token: str | None


@dataclass
class Repository:
    """Commits of files, and the branches that point to them."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # gated: files are sent for this token alone

    def commit(self, files: Files, branch: str = "main") -> str:
        content = repr(sorted(files.items())).encode() + str(len(self.commits)).encode()
        name = hashlib.sha1(content).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        name = self.branches.get(revision, revision)
        return name if name in self.commits else None


class Hub:
    """The server: add repositories and faults, read the requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.on_request: Callable[[str], None] = lambda line: None
        self.closing = threading.Event()
        self.write_token = ""  # of who may make repositories and commits
        self.uploads: dict[str, bytes] = {}  # large files, by their sha256
        self.storage_host = ""  # if set, large files are redirected there, as by the real hub
        self.endpoint = ""

    def add(self, name: str, files: Files, token: str | None = None) -> str:
        """A dataset with one commit on main; returns the commit."""
        repository = self.repositories.setdefault(name, Repository(token=token))
        return repository.commit(files)

    def lines(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.line]

    def take_fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.where in line:
                fault.times -= 1
                return fault
        return None


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub, until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve_this_process(home: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the libraries of this process talk to, with short timeouts and files in `home`."""
    import datasets
    import huggingface_hub
    from huggingface_hub import HfFileSystem, constants

    from slm.source import hub_client

    with serve() as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for module, values in (
            (constants, {"ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": False}),
            (constants, {"HUGGINGFACE_CO_URL_TEMPLATE": template}),
            (constants, {"HF_HUB_DISABLE_XET": True}),  # its protocol is not spoken here
            (constants, {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}),
            (constants, {"HF_HUB_DOWNLOAD_TIMEOUT": 0.4, "DOWNLOAD_CHUNK_SIZE": 4096}),
            (datasets.config, {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": False}),
            (datasets.config, {"HF_DATASETS_CACHE": home / "datasets"}),
            (hub_client, {"TIMEOUT": 0.4}),
        ):
            for name, value in values.items():
                patch.setattr(module, name, value)
        patch.delenv("HF_TOKEN", raising=False)
        yield server
        HfFileSystem.clear_instance_cache()
        huggingface_hub.close_session()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return PurePosixPath(path).suffix in LFS_SUFFIXES


def describe(path: str, content: bytes) -> dict[str, object]:
    """A file as the tree and paths-info endpoints show it."""
    entry: dict[str, object] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": git_sha1(content),
    }
    if is_lfs(path):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body wait 40 ms for each other

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    # ---- routes ----

    def _answer(self) -> None:
        line = f"{self.command} {unquote(self.path)}"
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(Request(line, self.headers.get("Range"), token))
        self.hub.on_request(line)
        fault = self.hub.take_fault(line)
        if fault and fault.kind == "status":
            return self._send(fault.status, b'{"error": "scripted"}', fault.headers)
        if fault and fault.kind == "silence":
            self.hub.closing.wait(20)
            self.close_connection = True
            return None
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        if parts[:2] in (["api", "datasets"], ["api", "models"]):
            if {"preupload", "commit"} & set(parts):
                return self._write(parts[2:], body)
            return self._api(parts[2:], parse_qs(address.query), parse_qs(body.decode()))
        if parts[:2] == ["api", "repos"] or parts[-1] == "batch" or parts[0] == "uploads":
            return self._write(parts, body)
        if "resolve" in parts and parts[0] != "storage":  # of a model without "datasets" before it
            at = parts.index("resolve")
            name = "/".join(parts[parts[0] == "datasets" : at])
            return self._file(name, parts[at + 1], "/".join(parts[at + 2 :]), fault)
        if parts[0] == "storage":
            commit, path = parts[3], "/".join(parts[4:])
            content = self.hub.repositories["/".join(parts[1:3])].commits[commit][path]
            return self._content(content, {}, fault)
        return self._send(404, b"{}")

    def _write(self, parts: list[str], body: bytes) -> None:
        """What a push asks: a repository, how files are sent, large files, the commit."""
        if parts[0] == "uploads":  # its address is the permission
            self.hub.uploads[parts[1]] = body
            return self._json({})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not self.hub.write_token or token != self.hub.write_token:
            return self._send(403, b'{"error": "this token may not write"}')
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            exists = name in self.hub.repositories
            if not exists:
                self.hub.add(name, {".gitattributes": b"*.gguf filter=lfs\n"})
            answer = json.dumps({"url": f"{self.hub.endpoint}/{name}"}).encode()
            return self._send(409 if exists else 200, answer)
        if parts[-1] == "batch":
            objects = json.loads(body)["objects"]
            for each in objects:
                place = f"{self.hub.endpoint}/uploads/{each['oid']}"
                each["actions"] = {"upload": {"href": place, "header": {}}}
            return self._json({"objects": objects, "transfer": "basic"})
        name, verb = "/".join(parts[:2]), parts[2]
        repository = self.hub.repositories[name]
        if verb == "preupload":
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {
                    "path": path,
                    "uploadMode": "lfs" if is_lfs(path) else "regular",
                    "shouldIgnore": False,
                }
                for path in paths
            ]
            return self._json({"files": modes})
        files = dict(repository.commits[repository.branches["main"]])
        for line in body.splitlines():
            value = json.loads(line)["value"]
            if "content" in value:
                files[value["path"]] = base64.b64decode(value["content"])
            elif "oid" in value:
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = repository.commit(files)
        place = f"{self.hub.endpoint}/{name}/commit/{commit}"
        return self._json({"commitUrl": place, "commitOid": commit, "success": True})

    def _api(
        self, parts: list[str], query: dict[str, list[str]], form: dict[str, list[str]]
    ) -> None:
        verbs = ("revision", "tree", "paths-info", "refs")
        at = next((i for i, part in enumerate(parts) if part in verbs), len(parts))
        name, verb, rest = "/".join(parts[:at]), "".join(parts[at : at + 1]), parts[at + 1 :]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        if verb == "refs":
            branches = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": c}
                for b, c in repository.branches.items()
            ]
            return self._json({"branches": branches, "tags": [], "converts": []})
        commit = repository.resolve(rest[0] if rest else "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if verb == "tree":
            return self._tree(files, "/".join(rest[1:]), query.get("recursive") == ["True"])
        if verb == "paths-info":
            present = [path for path in form.get("paths", []) if path in files]
            return self._json([describe(path, files[path]) for path in present])
        return self._json(
            {
                "id": name,
                "sha": commit,
                "private": False,
                "gated": "manual" if repository.token else False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in files],
            }
        )

    def _tree(self, files: Files, folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        below = {path: content for path, content in files.items() if path.startswith(prefix)}
        if folder and not below:
            return self._refuse(404, "EntryNotFound")
        entries, folders = [], set()
        for path, content in below.items():
            inner = path[len(prefix) :].split("/")
            depth = len(inner) if recursive else 2
            folders |= {prefix + "/".join(inner[:i]) for i in range(1, min(depth, len(inner)))}
            if recursive or len(inner) == 1:
                entries.append(describe(path, content))
        for path in sorted(folders):
            entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return self._json(entries)

    def _file(self, name: str, revision: str, path: str, fault: Fault | None) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            return self._refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        commit = repository.resolve(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        content = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if content is None:
            return self._refuse(404, "EntryNotFound", headers)
        headers["ETag"] = f'"{git_sha1(content)}"'
        if is_lfs(path):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            if self.hub.storage_host:
                place = f"{self.hub.storage_host}/storage/{name}/{commit}/{path}"
                return self._send(302, b"", {**headers, "Location": place})
        return self._content(content, headers, fault)

    # ---- answers ----

    def _content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if kind == "truncate":
            content = content[: len(content) * 2 // 3]
        if kind == "flip":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        status, start = 200, 0
        if requested := self.headers.get("Range"):
            first, _, last = requested.removeprefix("bytes=").partition("-")
            total, start = len(content), int(first)
            content = content[: int(last) + 1 if last else None]
            if start >= total:
                return self._send(416, b"", {"Content-Range": f"bytes */{total}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{total}"
        body = content[start:]
        if kind not in ("cut", "reset", "stall") or self.command == "HEAD":
            return self._send(status, body, headers)
        self._head(status, len(body), headers)
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if kind == "stall":
            self.hub.closing.wait(20)
        if kind == "reset":  # closing with this option set sends RST in place of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        return None

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(
            status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}
        )

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)
