"""A small server of Grafana's HTTP API, as its documentation describes it, strict about what it is sent.

It keeps folders, dashboards and alert rules in memory. A test may have it fail: see `GrafanaServer.fail`.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "glsa_0123456789abcdef"
UID = re.compile(r"[a-zA-Z0-9_-]{1,40}")
RULE_FIELDS = {
    "uid", "title", "orgID", "folderUID", "ruleGroup", "condition", "data", "noDataState", "execErrState", "for",
    "labels", "annotations", "isPaused",
}  # fmt: skip
REQUIRED = RULE_FIELDS - {"uid", "labels", "annotations", "isPaused"}
HANG_S = 30.0


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, message: str, **more: Any) -> None:
        self.code, self.body = code, {"message": message, **more}


class GrafanaServer:
    """What it holds, and what it was asked."""

    def __init__(self) -> None:
        self.datasources = [
            {"uid": "loki1", "name": "Loki", "type": "loki", "isDefault": False},
            {"uid": "prom1", "name": "Prometheus", "type": "prometheus", "isDefault": True},
        ]
        self.folders: dict[str, str] = {}
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.rules: dict[str, dict[str, Any]] = {}
        self.intervals: dict[tuple[str, str], int] = {}
        self.requests: list[tuple[str, str]] = []
        self.changes: list[tuple[str, str]] = []
        """Requests that were not GET."""
        self.fail: Callable[[str, str], int | str | None] = lambda method, path: None
        """By method and path: a status code, `hang`, `trickle`, `html`, `page not found`, `redirect`; None: answer."""
        self.released = threading.Event()
        self.url = ""

    def answer(self, method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        """Raises Refused."""
        parts = [unquote(part) for part in urlsplit(path).path.split("/")[2:]]
        match (method, parts):
            case ("GET", ["datasources"]):
                return 200, self.datasources
            case ("GET", ["folders"]):
                return 200, [
                    {"id": n, "uid": uid, "title": title} for n, (uid, title) in enumerate(self.folders.items())
                ]
            case ("GET", ["folders", uid]):
                return 200, {"uid": uid, "title": self._known(self.folders, uid, "folder not found")}
            case ("POST", ["folders"]):
                return self._make_folder(body)
            case ("GET", ["dashboards", "uid", uid]):
                return 200, self._known(self.dashboards, uid, "Dashboard not found")
            case ("POST", ["dashboards", "db"]):
                return self._save_dashboard(body)
            case ("GET", ["v1", "provisioning", "alert-rules", uid]):
                return 200, self._known(self.rules, uid, "")
            case ("POST", ["v1", "provisioning", "alert-rules"]):
                if body.get("uid") in self.rules:
                    raise Refused(409, "rule UID under the same organisation should be unique")
                return 201, self._save_rule(body, headers)
            case ("PUT", ["v1", "provisioning", "alert-rules", uid]):
                self._known(self.rules, uid, "")
                return 200, self._save_rule(body, headers)
            case ("GET", ["v1", "provisioning", "folder", folder, "rule-groups", group]):
                return 200, self._group(folder, group)
            case ("PUT", ["v1", "provisioning", "folder", folder, "rule-groups", group]):
                return self._save_group(folder, group, body, headers)
        raise Refused(404, "Not found")

    def _known(self, things: dict[str, Any], uid: str, message: str) -> Any:
        if uid not in things:
            raise Refused(404, message)
        return things[uid]

    def _make_folder(self, body: Any) -> tuple[int, Any]:
        if set(body) - {"uid", "title", "parentUid"} or not body.get("title") or not UID.fullmatch(body["uid"]):
            raise Refused(400, "bad folder")
        if body["uid"] in self.folders:
            raise Refused(409, "a folder with that uid exists")
        self.folders[body["uid"]] = body["title"]
        return 200, {"id": len(self.folders), "version": 1, **body}

    def _save_dashboard(self, body: Any) -> tuple[int, Any]:
        if set(body) - {"dashboard", "folderUid", "message", "overwrite"}:
            raise Refused(400, "unknown field")
        model = body["dashboard"]
        if body["folderUid"] not in self.folders:
            raise Refused(400, "folder not found")
        if not UID.fullmatch(model["uid"]) or not model["title"] or not isinstance(model["schemaVersion"], int):
            raise Refused(400, "bad dashboard")
        before = self.dashboards.get(model["uid"])
        if before is not None and not body["overwrite"]:
            raise Refused(412, "A dashboard with the same uid already exists", status="name-exists")
        if before is None and model["id"] is not None:
            raise Refused(404, "Dashboard not found")
        version = before["dashboard"]["version"] + 1 if before else 1
        saved = {**model, "id": 7, "version": version}
        self.dashboards[model["uid"]] = {"dashboard": saved, "meta": {"folderUid": body["folderUid"], "slug": "x"}}
        return 200, {"status": "success", "uid": model["uid"], "version": version, "url": f"/d/{model['uid']}"}

    def _save_rule(self, rule: Any, headers: Any) -> Any:
        if set(rule) - RULE_FIELDS or REQUIRED - set(rule):
            raise Refused(400, f"bad rule: {set(rule) ^ RULE_FIELDS}")
        if not UID.fullmatch(rule["uid"]) or rule["folderUID"] not in self.folders:
            raise Refused(400, "invalid alert rule")
        if rule["noDataState"] not in ("OK", "NoData", "Alerting", "KeepLast") or rule["execErrState"] not in (
            "OK", "Error", "Alerting", "KeepLast",
        ):  # fmt: skip
            raise Refused(400, "unknown state")
        if not re.fullmatch(r"\d+[smhd]", rule["for"]):
            raise Refused(400, "bad duration")
        known = {each["uid"] for each in self.datasources} | {"__expr__"}
        for query in rule["data"]:
            if query["datasourceUid"] not in known or query["model"]["refId"] != query["refId"]:
                raise Refused(400, "bad query")
            if not query["relativeTimeRange"]["from"] >= query["relativeTimeRange"]["to"]:
                raise Refused(400, "bad range")
        if rule["condition"] not in [query["refId"] for query in rule["data"]]:
            raise Refused(400, "condition refers to no query")
        for uid, other in self.rules.items():
            if uid != rule["uid"] and (other["folderUID"], other["title"]) == (rule["folderUID"], rule["title"]):
                raise Refused(400, "rule title under the same organisation and folder should be unique")
        provenance = {} if headers.get("X-Disable-Provenance") else {"provenance": "api"}
        self.rules[rule["uid"]] = {**rule, "id": 3, "updated": "2026-01-01T00:00:00Z", **provenance}
        return self.rules[rule["uid"]]

    def _group(self, folder: str, group: str) -> Any:
        rules = [rule for rule in self.rules.values() if (rule["folderUID"], rule["ruleGroup"]) == (folder, group)]
        if not rules:
            raise Refused(404, "")
        interval = self.intervals.get((folder, group), 60)
        return {"title": group, "folderUid": folder, "interval": interval, "rules": rules}

    def _save_group(self, folder: str, group: str, body: Any, headers: Any) -> tuple[int, Any]:
        if set(body) != {"title", "folderUid", "interval", "rules"} or body["interval"] % 10 or body["interval"] <= 0:
            raise Refused(400, "bad group")
        if any(rule["uid"] not in self.rules for rule in body["rules"]):
            raise Refused(500, "Internal Server Error")  # as some versions do
        kept = {rule["uid"] for rule in body["rules"]}
        for uid in [u for u, r in self.rules.items() if (r["folderUID"], r["ruleGroup"]) == (folder, group)]:
            if uid not in kept:
                del self.rules[uid]
        for rule in body["rules"]:
            if (rule["folderUID"], rule["ruleGroup"]) != (folder, group):
                raise Refused(400, "rule of another group")
            self._save_rule(rule, headers)
        self.intervals[folder, group] = body["interval"]
        return 200, self._group(folder, group)


@contextmanager
def grafana() -> Iterator[GrafanaServer]:
    """A server on loopback."""
    state = GrafanaServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Not here."""

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def do_PUT(self) -> None:
            self._serve("PUT")

        def _serve(self, method: str) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            state.requests.append((method, self.path))
            failure = state.fail(method, self.path)
            if isinstance(failure, str):
                self._misbehave(failure)
                return
            if failure is not None:
                self._send(failure, {"message": "made to fail", "status": "version-mismatch"})
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, {"message": "Invalid API key", "messageId": "api-key.invalid"})
                return
            if method != "GET" and self.headers.get("Content-Type") != "application/json":
                self._send(415, {"message": "not JSON"})
                return
            try:
                code, answer = state.answer(method, self.path, body, self.headers)
            except Refused as error:
                code, answer = error.code, error.body
            if method != "GET" and code < 300:
                state.changes.append((method, self.path))
            self._send(code, answer)

        def _misbehave(self, how: str) -> None:
            if how == "hang":
                state.released.wait(HANG_S)
            elif how == "html":
                self._send_raw(200, b"<html>log in</html>", "text/html")
            elif how == "page not found":
                self._send_raw(404, b"<html>no such page</html>", "text/html")
            elif how == "redirect":
                self.send_response(302)
                self.send_header("Location", "https://elsewhere.example.com/")
                self.end_headers()
            elif how == "trickle":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                while not state.released.is_set():
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return
                    time.sleep(0.02)

        def _send(self, code: int, value: Any) -> None:
            if value == {"message": ""}:  # as the provisioning API says that something is not there
                self._send_raw(code, b"", None)
                return
            self._send_raw(code, json.dumps(value).encode(), "application/json; charset=UTF-8")

        def _send_raw(self, code: int, data: bytes, kind: str | None) -> None:
            self.send_response(code)
            if kind is not None:
                self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
