"""The process of a server: its parts put together, and the HTTP server around them."""

import contextlib
import datetime
import getpass
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from orchestrator.api.access.issued_tokens import IssuedTokens
from orchestrator.api.api_app import create_app
from orchestrator.api.api_settings import ApiSettings
from orchestrator.api.server_engine import queue_engine
from orchestrator.api.server_files import ServerFiles
from orchestrator.api.server_settings import ServerSettings
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.domain.errors import UsageError
from orchestrator.lasting_thread import repeating
from orchestrator.store.uploads.file_store import FileStore

CLEAN_S = 600.0
"""From one removal of unused uploads to the next."""
GRACE_S = 5
"""Requests that are being answered have so long when the server ends."""
BACKLOG = 512
MOST_CONNECTIONS = 1000
"""At one time; more get 503."""
IDLE_S = 65
"""A connection without a request is closed: longer than proxies keep theirs."""
Log = Callable[[str], None]


def serve(settings: ServerSettings, environ: Mapping[str, str], log: Log) -> None:
    """Run a server until it gets SIGTERM or SIGINT. To be called in the main thread. Raises UsageError if it cannot
    listen or write its files, ClusterError if there is no cluster."""
    files, say = ServerFiles(settings.folder), _stamped(log)
    files.make()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_do_not_kill())
        listening = stack.enter_context(contextlib.closing(_listen(settings.host, settings.port)))
        store = QueueStore(files.database)
        stack.callback(store.close)
        tokens, uploads = IssuedTokens(store, time.time), FileStore(files.uploads)
        files.ensure_admin_token(tokens, _user())
        service = stack.enter_context(queue_engine(settings, files, store, uploads, environ, say))
        stack.enter_context(repeating("clean uploads", partial(_clean, uploads, say), CLEAN_S, say))
        app = create_app(service, tokens, uploads, ApiSettings(settings.home), say)
        url = settings.url(listening.getsockname()[1])
        files.announce(url, store.server_id, settings.tls[0] if settings.tls else None)
        stack.callback(files.withdraw)
        say(f"serving at {url}")
        uvicorn.Server(_config(app, settings)).run(sockets=[listening])
        say("ending; runs continue")


def _config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    certificate, key = settings.tls or (None, None)
    return uvicorn.Config(
        app,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=settings.config.behind_proxy,
        forwarded_allow_ips="127.0.0.1",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
        lifespan="off",
        ws="none",
    )


def _listen(host: str, port: int) -> socket.socket:
    """Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}", "another program may use the port: --listen HOST:PORT"
        ) from error
    return bound


@contextlib.contextmanager
def _signals_do_not_kill() -> Iterator[None]:
    """uvicorn handles the signals while it serves, and raises them again when it has ended: then there are files to be
    closed."""

    def ignore(number: int, frame: FrameType | None) -> None:
        return None

    before = {number: signal.signal(number, ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clean(uploads: FileStore, log: Log) -> None:
    removed = uploads.clean(time.time())
    if removed:
        log(f"removed {len(removed)} uploaded files that were not used for long")


def _stamped(log: Log) -> Log:
    return lambda line: log(f"{datetime.datetime.now().isoformat(timespec='milliseconds')} {line}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return "admin"
