"""A TCP proxy in front of a bucket's endpoint, and the cut of it."""

import contextlib
import socket
import struct
import threading
import time
from functools import partial

from orchestrator.lasting_thread import LastingThread

HOST = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)
"""`SO_LINGER` with a time of zero: closing sends a reset."""
LISTEN_AGAIN_S = 5.0
CONNECT_S = 10.0


class Link:
    """Forwards connections from a port of this machine's loopback to `host:port`, from threads of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()

    def cut(self) -> None:
        """Refuse new connections by closing the listener, and reset existing ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections, self._open = self._open, set()
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # `close` alone would not wake who waits in `accept`
            listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.shutdown(socket.SHUT_RD)  # wakes its thread, and tells the other side nothing yet
            connection.close()

    def mend(self) -> None:
        """Forward again, from the same port. Raises OSError if another program has taken that meanwhile."""
        if self._listener is None:
            self._listen()

    def close(self) -> None:
        """For good."""
        self.cut()

    def _listen(self) -> None:
        deadline = time.monotonic() + LISTEN_AGAIN_S
        while True:
            try:
                listener = socket.create_server((HOST, self.port))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        with self._lock:
            self._listener, self.port = listener, int(listener.getsockname()[1])
        LastingThread("drill-link", partial(self._accept, listener))

    def _accept(self, listener: socket.socket) -> bool:
        try:
            client, _ = listener.accept()
        except OSError:
            if self._listener is not listener:
                return False  # cut
            raise  # of that connection, or for want of descriptors: tried again
        try:
            threading.Thread(target=self._forward, args=(client, listener), name="drill-link", daemon=True).start()
        except RuntimeError:
            client.close()
            raise
        return True

    def _forward(self, client: socket.socket, listener: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=CONNECT_S)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            whole = self._listener is listener
            if whole:
                self._open |= {client, server}
        if not whole:
            client.close()
            server.close()
            return
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink), name="drill-link", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with self._lock:
            ended = self._open & {source, sink}  # not those that were cut: they are to be reset
            self._open -= ended
        for connection in ended:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
