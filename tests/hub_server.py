"""A small hub on 127.0.0.1: as much of the Hugging Face hub's API as its clients need here.

It describes repositories, lists their trees and gives their files, small ones itself and large
ones by a redirect, with ranges. Faults are set by a test: a status, a line that breaks, a content
or a length that is not what was announced, a request that is never answered. Every request is
kept, with whether it had a token.

Not covered: writing, pages of long lists, Xet storage.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 100_000
ROUTE = re.compile(
    r"/(?:api/(?P<kind>models|datasets)/(?P<api_id>[\w.-]+/[\w.-]+)"
    r"(?:/(?P<verb>revision|tree|paths-info)/(?P<api_rev>[^/]+)(?:/(?P<folder>.+))?)?"
    r"|(?P<set>datasets/)?(?P<file_id>[\w.-]+/[\w.-]+)/resolve/(?P<file_rev>[^/]+)/(?P<file>.+))"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files of one commit. token: what a reader must show; gated: whether others may look at it."""

    files: dict[str, bytes]
    token: str | None = None
    gated: bool = False
    names: set[str] = field(default_factory=lambda: {"main"})

    @property
    def commit(self) -> str:
        contents = sorted((name, sha256(content)) for name, content in self.files.items())
        return hashlib.sha1(repr(contents).encode()).hexdigest()

    def entry(self, name: str) -> dict:
        content = self.files[name]
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
        if len(content) > LARGE_BYTES:
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        return entry


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD /path" the pattern finds, `times` times."""

    pattern: str
    times: int
    status: int | None = None
    message: str = ""
    break_after_bytes: int | None = None
    damage: bool = False
    extra: bytes = b""
    stall: bool = False


class HubServer:
    """Serve repositories until the `with` block ends; `url` is what HF_ENDPOINT should be."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str | None, bool]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def __enter__(self) -> HubServer:
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, files: dict[str, bytes], kind: str = "models", **how) -> Repository:
        self.repositories[kind, name] = Repository(dict(files), **how)
        return self.repositories[kind, name]

    def fail(self, pattern: str, times: int = 1, **what) -> Fault:
        fault = Fault(pattern, times, **what)
        self.faults.append(fault)
        return fault

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, pattern: str) -> list[tuple[str, str | None, bool]]:
        """The requests so far ("METHOD /path", its Range, whether it had a token) that match."""
        return [request for request in self.requests if re.search(pattern, request[0])]

    def find_content(self, digest: str) -> bytes | None:
        contents = (c for repo in self.repositories.values() for c in repo.files.values())
        return next((content for content in contents if sha256(content) == digest), None)


class HubHandler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {path}"
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        with self.hub.lock:
            self.hub.requests.append((request, self.headers.get("Range"), bool(token)))
        self.fault = self.hub.take_fault(request)
        if self.fault and self.fault.stall:
            self.hub.closing.wait()
        elif self.fault and self.fault.status:
            self.refuse(self.fault.status, "", self.fault.message)
        elif path == "/":
            self.send(200, b"a hub")
        elif path.startswith("/large/"):
            self.send_file(self.hub.find_content(path.rsplit("/", 1)[1]), {})
        else:
            self.answer_for_repository(path, body, token)

    def answer_for_repository(self, path: str, body: bytes, token: str) -> None:
        route = ROUTE.fullmatch(path)
        if route is None:
            return self.refuse(404, "", "Not found")
        kind = route["kind"] or ("datasets" if route["set"] else "models")
        name, revision = route["api_id"] or route["file_id"], route["api_rev"] or route["file_rev"]
        repository = self.hub.repositories.get((kind, name))
        allowed = repository is not None and repository.token in (None, token)
        if repository is None or not (allowed or repository.gated):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if revision not in (None, repository.commit, *repository.names):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if route["file"] is None:
            return self.describe(name, repository, route["verb"], route["folder"], body)
        if not allowed:
            return self.refuse(403 if token else 401, "GatedRepo", "Access to it is restricted.")
        return self.give(repository, route["file"])

    def describe(self, name: str, repo: Repository, verb: str, folder: str, body: bytes) -> None:
        if verb == "tree":
            names = [n for n in repo.files if not folder or n.startswith(folder + "/")]
            return self.send_json([repo.entry(n) for n in names])
        if verb == "paths-info":
            wanted = json.loads(body)["paths"]
            return self.send_json([repo.entry(n) for n in repo.files if n in wanted])
        files = [{"rfilename": n} for n in repo.files]
        about = {"id": name, "sha": repo.commit, "siblings": files, "tags": [], "downloads": 0}
        return self.send_json(
            {**about, "private": False, "gated": "manual" if repo.gated else False}
        )

    def give(self, repository: Repository, name: str) -> None:
        headers = {"X-Repo-Commit": repository.commit}
        content = repository.files.get(name)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", headers)
        if len(content) <= LARGE_BYTES:
            return self.send_file(content, {**headers, "ETag": f'"{git_hash(content)}"'})
        # Another host, as a hub's store is: a client must not show it the token.
        place = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/large/{sha256(content)}"
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content)}"'}
        return self.send(302, b"", {**headers, **linked, "Location": place})

    def send_file(self, content: bytes | None, headers: dict[str, str]) -> None:
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        status, first = 200, 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, first = 206, int(asked[1])
            whole = len(content)
            headers = {**headers, "Content-Range": f"bytes {first}-{whole - 1}/{whole}"}
        if self.fault and self.fault.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.fault:
            content += self.fault.extra
        return self.send(status, content[first:], {**headers, "Accept-Ranges": "bytes"})

    def refuse(self, status: int, code: str, message: str, headers: dict | None = None) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(status, b"{}", {**(headers or {}), **{k: v for k, v in said.items() if v}})

    def send_json(self, content: object) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.break_after_bytes if self.fault else None
        self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True
