"""The `/metrics` endpoint, from which Prometheus reads a run's metrics."""

import contextlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from orchestrator.domain.errors import UsageError
from orchestrator.metrics.scrape_pace import ScrapePace

PORT_VARIABLE = "CONVOY_METRICS_PORT"
TOKEN_VARIABLE = "CONVOY_METRICS_TOKEN"
AUTO, OFF = "auto", "off"
"""Values of the variable, and of `metrics.port`, besides a number."""
MIN_TOKEN_LENGTH = 16
CLIENT_S = 10.0
"""From a connection to the end of its answer."""
PROBE_S = 1.0
"""How long `refuses_connections` waits for an answer."""
MAX_CLIENTS = 16
"""Connections at a time, each with a thread; a further one ends the oldest."""
FORMAT = "text/plain;version=0.0.4"
"""Of every answer, uncompressed: OpenMetrics and gzip take 1.8 times the CPU time of a driver that may share its cores
with workers, and tell Prometheus nothing more."""
CLOSE_POLL_S = 0.05
"""How often the serving thread looks whether it shall end: `close`, and so the end of a run, waits for that."""
ERROR_PAUSE_S = 0.1
"""Pause after an error of `accept`, which would otherwise recur at once if descriptors are exhausted."""


class MetricsServer:
    """The endpoint, served from a daemon thread until `close`."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int, token: str | None) -> None:
        """Raises UsageError if the address cannot be bound, or is reachable from outside without a token."""
        check_exposure(host, token)
        self._pace = ScrapePace()
        app = _guarded(make_wsgi_app(registry, disable_compression=True), token, self._pace)
        server_class = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, app, server_class, handler_class=_QuietHandler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"metrics cannot be served at {host}:{port}: {getattr(error, 'strerror', None) or error}",
                hint="choose another metrics.port, or 0 for a free one",
            ) from error
        self.port = self._server.server_port
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLOSE_POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()

    def await_scrape(self) -> bool:
        """Let Prometheus read the last values, if it reads this endpoint regularly: at most until the next scrape is
        overdue. Whether it did."""
        return self._pace.await_next(time.monotonic())

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def asked_port(port: int | str | None, env: Mapping[str, str]) -> int | None:
    """The port to serve metrics on, 0 for a free one; None: none is wanted.

    `port`: `metrics.port` of the spec, a number, `auto` (or None) or `off`. `auto` leaves it to the variable
    `CONVOY_METRICS_PORT`, which may be any of them, and means a free port without it. Raises UsageError if the variable
    is none of them.
    """
    if port is None or port == AUTO:
        said = env.get(PORT_VARIABLE, "").strip() or AUTO
        if not (said in (AUTO, OFF) or (said.isdecimal() and int(said) <= 65535)):
            raise UsageError(f"{PORT_VARIABLE} is {said!r}, expected a port from 0 to 65535, {AUTO} or {OFF}")
        port = int(said) if said.isdecimal() else said
    if port == OFF:
        return None
    return port if isinstance(port, int) else 0


def check_exposure(host: str, token: str | None) -> None:
    """Raises UsageError if `host` is not loopback and there is no token, or the token is guessable."""
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise UsageError(
            f"{TOKEN_VARIABLE} has {len(token)} characters, expected at least {MIN_TOKEN_LENGTH}",
            hint="make one with: openssl rand -hex 32",
        )
    if token is None and not is_loopback(host):
        raise UsageError(
            f"metrics.host {host!r} can be reached from other machines, and there is no {TOKEN_VARIABLE}",
            hint=f"export {TOKEN_VARIABLE}=$(openssl rand -hex 32), or use metrics.host: 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuses_connections(target: str) -> bool:
    """Whether nothing listens at `host:port`. A host that does not answer at all has not refused."""
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


def _guarded(app: WSGIApplication, token: str | None, pace: ScrapePace) -> WSGIApplication:
    """`app` at `/metrics` alone, for those who have the token."""
    expected = f"Bearer {token}".encode() if token is not None else None

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1", errors="replace")
        if expected is not None and not hmac.compare_digest(given, expected):
            start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
            return [b"a bearer token is needed\n"]
        if environ.get("PATH_INFO") != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"metrics are at /metrics\n"]
        return _Scraped(list(app({**environ, "HTTP_ACCEPT": FORMAT}, start_response)), pace)

    return guarded


class _Scraped:
    """An answer that is noted once it has been sent. wsgiref asks for the number of blocks, and closes at the end."""

    def __init__(self, blocks: list[bytes], pace: ScrapePace) -> None:
        self._blocks, self._pace = blocks, pace

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def close(self) -> None:
        """It has been sent."""
        self._pace.note(time.monotonic())


Request = socket.socket | tuple[bytes, socket.socket]
"""What a server of the standard library serves: a connection, or a datagram, which there is none of here."""


class _Server(ThreadingMixIn, WSGIServer):
    """Anybody who reaches the port can connect, so connections and their time are bounded before the token is read."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without looking up this host's full name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()
        self._clients: dict[socket.socket, float] = {}
        """When each has to be over, the oldest first."""
        self._clients_lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept, as the base class does."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ERROR_PAUSE_S)
            raise

    def process_request(self, request: Request, client_address: object) -> None:
        """Serve a connection in a thread."""
        assert isinstance(request, socket.socket)
        with self._clients_lock:
            self._clients[request] = time.monotonic() + CLIENT_S
            surplus = list(self._clients)[:-MAX_CLIENTS]
        self._hang_up(surplus)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        """A connection is over."""
        assert isinstance(request, socket.socket)
        with self._clients_lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between two looks for connections."""
        with self._clients_lock:
            late = [client for client, due_s in self._clients.items() if due_s <= time.monotonic()]
        self._hang_up(late)

    def handle_error(self, request: object, client_address: object) -> None:
        """An interrupted scrape is not reported; the scraper sees it."""

    @staticmethod
    def _hang_up(clients: list[socket.socket]) -> None:
        """Wake their threads, which then close them."""
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = CLIENT_S

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not news."""
