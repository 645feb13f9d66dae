"""A Hugging Face hub in miniature, over HTTP: repositories are directories, each at one commit."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def entry(root: Path, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    oid = hashlib.sha1(data).hexdigest()
    return {"type": "file", "path": str(path.relative_to(root)), "size": len(data), "oid": oid}


class Handler(BaseHTTPRequestHandler):
    """`/api/{kind}s/{owner}/{name}...` and `/{datasets/}{owner}/{name}/resolve/{commit}/{file}`."""

    root: Path

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            at = parts.index("resolve")
            kind = "datasets" if parts[0] == "datasets" else "models"
            self._file(self.root / kind / "/".join(parts[at - 2 : at]) / "/".join(parts[at + 2 :]))
        else:
            self._send(404, b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        parts = self.path.strip("/").split("/")
        root = self.root / parts[1] / "/".join(parts[2:4])
        found = [entry(root, root / path) for path in asked.get("paths", []) if (root / path).is_file()]
        self._json(found)

    def _api(self, kind: str, repository: str, rest: list[str]) -> None:
        root = self.root / kind / repository
        if not root.is_dir():
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            self._json([entry(root, path) for path in files])
        else:
            siblings = [{"rfilename": str(path.relative_to(root))} for path in files]
            self._json({"id": repository, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            stop = min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{stop}/{len(data)}"
            self._send(206, data[int(first) : stop + 1], headers)
        else:
            self._send(200, data, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve `root/datasets/OWNER/NAME/` and `root/models/OWNER/NAME/`; yields the endpoint."""
    handler = type("Bound", (Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
