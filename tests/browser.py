"""Headless Chromium for tests of pages: what the console says, what is drawn, how wide it is, which colours text has.

It is driven through its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) with aiohttp, which
Ray brings.
"""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
START_S = 30.0
ANSWER_S = 20.0
_KEYS = {
    "Tab": {"windowsVirtualKeyCode": 9},
    "Enter": {"windowsVirtualKeyCode": 13, "text": "\r"},
    "Escape": {"windowsVirtualKeyCode": 27},
    "ArrowRight": {"windowsVirtualKeyCode": 39},
}
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--remote-debugging-port=0",
)  # fmt: skip


def program() -> str | None:
    """Chromium's path; None if it is not installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass(frozen=True)
class Look:
    """A page as it was drawn."""

    console: list[str]
    """Errors and warnings, exceptions, and requests that failed or were blocked."""
    requests: list[str]
    """URLs that the page asked for, its own left out."""
    value: Any
    """What the expression gave."""
    picture: bytes
    """PNG of the whole page."""


class Browser:
    """One browser process. Each `look` opens a page of its own."""

    def __init__(self, port: int) -> None:
        self._port = port

    def look(self, path: Path, width: int, expression: str, dark: bool = False, hover: str = "") -> Look:
        """Open a file in a window `width` wide, move the pointer to the middle of the element `hover` (a selector), and
        evaluate a JavaScript expression."""
        return asyncio.run(self._look(path.absolute().as_uri(), width, expression, dark, hover))

    @contextmanager
    def visit(self, url: str, width: int, dark: bool = False) -> Iterator["Visit"]:
        """A page that stays open: it lives while the test does something."""
        with asyncio.Runner() as runner:
            visit = Visit(runner, f"http://127.0.0.1:{self._port}")
            try:
                visit.begin(url, width, dark)
                yield visit
            finally:
                visit.end()

    async def _look(self, url: str, width: int, expression: str, dark: bool, hover: str) -> Look:
        base = f"http://127.0.0.1:{self._port}"
        async with aiohttp.ClientSession() as http:
            async with http.put(f"{base}/json/new?about:blank") as answer:
                target = await answer.json()
            async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = _Page(socket)
                look = await page.look(url, width, expression, dark, hover)
            async with http.get(f"{base}/json/close/{target['id']}"):
                return look


class Visit:
    """A page that is open."""

    def __init__(self, runner: asyncio.Runner, base: str) -> None:
        self._runner, self._base = runner, base
        self._http: aiohttp.ClientSession
        self._page: _Page
        self._target = ""

    def begin(self, url: str, width: int, dark: bool) -> None:
        self._runner.run(self._open(url, width, dark))

    async def _open(self, url: str, width: int, dark: bool) -> None:
        self._http = aiohttp.ClientSession()
        async with self._http.put(f"{self._base}/json/new?about:blank") as answer:
            target = await answer.json()
        self._target = target["id"]
        self._page = _Page(await self._http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        await self._page.open(url, width, dark)

    def end(self) -> None:
        self._runner.run(self._close())

    async def _close(self) -> None:
        async with self._http.get(f"{self._base}/json/close/{self._target}"):
            await self._http.close()

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        return self._runner.run(self._page.value(expression))

    def until(self, expression: str, limit_s: float = 20.0) -> Any:
        """Wait until an expression gives something true, and return that; true for an element."""
        expression = f"(found => found instanceof Node ? true : found)({expression})"
        deadline = time.monotonic() + limit_s
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline, f"not within {limit_s:g} s: {expression}\n{self.value(TEXT)}"
            time.sleep(0.05)
        return found

    def size(self, width: int, height: int = 900) -> None:
        """Another window."""
        self._runner.run(self._page.size(width, height))

    def press(self, key: str) -> None:
        """A key, for what has the focus."""
        self._runner.run(self._page.press(key))

    def type(self, text: str) -> None:
        """Text, into what has the focus."""
        self._runner.run(self._page.call("Input.insertText", {"text": text}))

    def point(self, selector: str) -> None:
        """Move the pointer to the middle of an element."""
        self._runner.run(self._page.point(selector))

    def offline(self, cut: bool) -> None:
        """Cut the network of the page, or restore it."""
        limits = {"offline": cut, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._runner.run(self._page.call("Network.emulateNetworkConditions", limits))

    def picture(self) -> bytes:
        """PNG of the whole page."""
        return self._runner.run(self._page.picture())

    @property
    def problems(self) -> list[str]:
        """Errors and warnings of the console, exceptions, requests that failed or were refused."""
        self.value("0")  # what came meanwhile is read
        return self._page.console() + self._page.failures()

    @property
    def requests(self) -> list[str]:
        """URLs that the page asked for."""
        self.value("0")
        return self._page.asked()


TEXT = "document.body.innerText.slice(0, 2000)"


class _Page:
    """One page, through its socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self._events: list[dict[str, Any]] = []

    async def look(self, url: str, width: int, expression: str, dark: bool, hover: str) -> Look:
        await self.open(url, width, dark)
        height = await self.value("Math.ceil(document.documentElement.scrollHeight)")
        await self.size(width, height)
        if hover:
            await self.point(hover)
        value = await self.value(expression)
        return Look(self.console(), [each for each in self.asked() if each != url], value, await self.picture())

    async def open(self, url: str, width: int, dark: bool) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.size(width, 900)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        await self.call("Page.navigate", {"url": url})
        await self._until("Page.loadEventFired")

    async def point(self, selector: str) -> None:
        box = await self.value(
            f"(r => [r.left + r.width / 2, r.top + r.height / 2])({_query(selector)}.getBoundingClientRect())"
        )
        await self.call("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": box[0], "y": box[1]})

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key, **_KEYS.get(key, {})})

    async def picture(self) -> bytes:
        shot = await self.call("Page.captureScreenshot", {"captureBeyondViewport": True})
        return base64.b64decode(shot["data"])

    def asked(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]

    def failures(self) -> list[str]:
        """Requests that failed, but for those that the page itself ended, or that were refused."""
        found = []
        for event in self._events:
            parameters = event["params"]
            if event["method"] == "Network.loadingFailed" and not parameters.get("canceled"):
                found.append(f"{parameters['type']}: {parameters['errorText']}")
            elif event["method"] == "Network.responseReceived" and parameters["response"]["status"] >= 400:
                found.append(f"{parameters['response']['status']} {parameters['response']['url']}")
        return found

    async def size(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", size)

    async def value(self, expression: str) -> Any:
        result = await self.call(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def call(self, method: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters or {}})
        while True:
            message = await self._next()
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                found: dict[str, Any] = message["result"]
                return found

    async def _until(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            await self._next()

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self._socket.receive_str(timeout=ANSWER_S))
        if "method" in message:
            self._events.append(message)
        return message

    def console(self) -> list[str]:
        found = []
        for event in self._events:
            parameters = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                found.append(str(parameters["args"]))
            elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
        return found


def _query(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser, with a profile that is removed afterwards."""
    path = program()
    assert path is not None, "Chromium is not installed"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield Browser(_port(Path(profile) / "DevToolsActivePort", process))
        finally:
            process.kill()
            process.wait()


def _port(file: Path, process: "subprocess.Popen[bytes]") -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        lines = file.read_text().splitlines() if file.exists() else []
        if lines:
            return int(lines[0])
        assert process.poll() is None, "Chromium ended at once"
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not start within {START_S:.0f} s")
