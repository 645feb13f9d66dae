"""Which server a command talks to, and with which token.

In this order: `--server` or `CONVOY_SERVER`; the server of the last `convoy login`; the server that runs on this
machine for this home. `CONVOY_TOKEN` replaces a stored token.
"""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.atomic_files import read_json, write_bytes
from orchestrator.domain.errors import UsageError
from orchestrator.json_values import JsonObject, JsonShapeError, mapping, optional, text

LOGINS_FILE = "servers.json"
SERVER_FOLDER = "server"
"""Below `CONVOY_HOME`: all files of the server of this home."""
ADDRESS_FILE = "address.json"
"""Of a server that runs: `url`, `pid`, `server_id`, and `ca_file` if its certificate is not signed by a known CA."""
ADMIN_TOKEN_FILE = "admin-token"
SERVER_VARIABLE = "CONVOY_SERVER"
SECRET_VARIABLE = "CONVOY_TOKEN"
CERTIFICATES_VARIABLE = "CONVOY_CA_FILE"
NO_SERVER_HINT = "`convoy server start` starts one here, `convoy login URL` uses another, `convoy run` needs none"


@dataclass(frozen=True)
class ServerAddress:
    """A server, and how to be let in."""

    url: str
    secret: str | None
    """The token."""
    ca_file: str | None
    """Certificates to trust, beside those that the system knows."""
    origin: str
    """Where the address is from, for messages."""

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, as far as its address says so."""
        return is_loopback_url(self.url)


def choose_server(home: Path, given: str | None, environ: Mapping[str, str]) -> ServerAddress:
    """The server to use. `given`: `--server`. Raises UsageError if there is none."""
    logins = read_logins(home)
    asked = given or environ.get(SERVER_VARIABLE)
    here = local_server(home)
    if asked:
        url = normal_url(asked)
        found = logins.get(url) or (here if here is not None and here.url == url else None)
        origin = "--server" if given else SERVER_VARIABLE
        chosen = ServerAddress(url, found.secret if found else None, found.ca_file if found else None, origin)
    else:
        current = current_login(home)
        found = logins.get(current) if current is not None else here
        if found is None:
            raise UsageError(f"no server is known: none runs for {home.absolute()}, and none is stored", NO_SERVER_HINT)
        chosen = found
    secret = environ.get(SECRET_VARIABLE) or chosen.secret
    return ServerAddress(chosen.url, secret, environ.get(CERTIFICATES_VARIABLE) or chosen.ca_file, chosen.origin)


def normal_url(given: str) -> str:
    """`https://host:port`, from what a person writes. Raises UsageError."""
    whole = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{given!r} is no address of a server", "for example https://convoy.example.com:8470")
    if parts.username or parts.password or parts.query:
        raise UsageError("the address of a server has no user, password or query", "the token comes separately")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{parts.path.rstrip('/')}"


def is_loopback_url(url: str) -> bool:
    """Whether an address is one of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_server(home: Path) -> ServerAddress | None:
    """The server that was started for this home; it may have ended since."""
    folder = home.absolute() / SERVER_FOLDER
    value = read_json(folder / ADDRESS_FILE)
    try:
        url, ca_file = text(value or {}, "url"), optional(text, value or {}, "ca_file")
    except JsonShapeError:
        return None
    try:
        secret = (folder / ADMIN_TOKEN_FILE).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        secret = None
    return ServerAddress(url, secret, ca_file, f"the server of {home.absolute()}")


def read_logins(home: Path) -> dict[str, ServerAddress]:
    """What `convoy login` has stored, by URL. Raises UsageError if the file is damaged."""
    path = home.absolute() / LOGINS_FILE
    try:
        servers = mapping(_logins(path), "servers")
        return {
            url: ServerAddress(
                url, text(mapping(servers, url), "token"), optional(text, mapping(servers, url), "ca_file"),
                "convoy login",
            )
            for url in servers
        }  # fmt: skip
    except JsonShapeError as error:
        raise UsageError(f"{path} is damaged: {error}", "remove it, and log in again: `convoy login URL`") from None


def current_login(home: Path) -> str | None:
    """URL of the server of the last login."""
    value = _logins(home.absolute() / LOGINS_FILE).get("current")
    return value if isinstance(value, str) else None


def store_login(home: Path, url: str, secret: str, ca_file: str | None) -> Path:
    """Store a server and make it the current one. Only the owner may read the file. Raises UsageError."""
    path = home.absolute() / LOGINS_FILE
    value = _logins(path)
    servers = dict(mapping(value, "servers"))
    servers[url] = {"token": secret, "ca_file": ca_file}
    _write(path, {"current": url, "servers": servers})
    return path


def remove_login(home: Path, url: str) -> bool:
    """Forget a server; whether it was known. Raises UsageError."""
    path = home.absolute() / LOGINS_FILE
    value = _logins(path)
    servers = dict(mapping(value, "servers"))
    known = servers.pop(url, None) is not None
    if known:
        current = value.get("current")
        _write(path, {"current": None if current == url else current, "servers": servers})
    return known


def _logins(path: Path) -> JsonObject:
    return read_json(path) or {"current": None, "servers": {}}


def _write(path: Path, value: JsonObject) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, (json.dumps(value, indent=2) + "\n").encode(), mode=0o600)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "set CONVOY_HOME or --home") from error
