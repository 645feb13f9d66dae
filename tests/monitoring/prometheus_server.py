"""A real Prometheus in a directory of its own, and its HTTP API."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

START_S = 30.0
ANSWER_S = 20.0
SCRAPE_S = 1
RATE_INTERVALS = 4
"""`$__rate_interval` is so many scrape intervals, as in Grafana; twice as many here, because a busy machine is late."""


@dataclass(frozen=True)
class Span:
    """A part of the time axis, in Unix seconds, and the distance of its points."""

    start_s: float
    end_s: float
    step_s: float = 1.0


class PrometheusServer:
    """Answers queries until it is closed."""

    def __init__(self, directory: Path, targets: Mapping[str, Sequence[str]], rules: Sequence[Path] = ()) -> None:
        """`targets`: addresses by the name of their job. `rules`: files of rules, evaluated every second."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = directory / "prometheus.yml"
        config.write_text(
            yaml.safe_dump(_config(targets, [str(at_interval(path, directory, f"{SCRAPE_S}s")) for path in rules]))
        )
        program = shutil.which("prometheus")
        assert program is not None
        self._log = (directory / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--query.lookback-delta=10s",
                "--storage.tsdb.retention.time=100y",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._wait(directory)

    def _wait(self, directory: Path) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=1).close()
                return
            assert self._process.poll() is None, (directory / "prometheus.log").read_text()
            time.sleep(0.1)
        raise AssertionError("Prometheus was not ready in time")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def get(self, path: str, parameters: Mapping[str, str]) -> list[dict[str, object]]:
        """The result of a query. Raises AssertionError with Prometheus' message if it is refused."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=ANSWER_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters.get('query')}: {error.read().decode()}") from error
        data = answer["data"]
        return list(data["result"] if "result" in data else data["groups"])

    def instant(self, expr: str, at_s: float) -> list[dict[str, object]]:
        """The series at one time."""
        return self.get("query", {"query": expr, "time": str(at_s)})

    def range(self, expr: str, span: Span) -> list[dict[str, object]]:
        """The series over a span."""
        times = {"start": str(span.start_s), "end": str(span.end_s), "step": str(span.step_s)}
        return self.get("query_range", {"query": expr, **times})

    def rules(self) -> Iterator[dict[str, object]]:
        """All rules with their health, and the alerts that they raise."""
        for group in self.get("rules", {}):
            yield from group["rules"]  # type: ignore[misc]


def _config(targets: Mapping[str, Sequence[str]], rules: Sequence[str]) -> dict[str, object]:
    jobs = [
        {"job_name": name, "honor_labels": True, "static_configs": [{"targets": list(addresses)}]}
        for name, addresses in targets.items()
    ]
    every = f"{SCRAPE_S}s"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": list(rules),
        "scrape_configs": jobs,
    }


def at_interval(rules: Path, directory: Path, interval: str) -> Path:
    """A copy of a file of rules that is evaluated so often."""
    value = yaml.safe_load(rules.read_text())
    for group in value["groups"]:
        group["interval"] = interval
    copy = directory / f"rules-{rules.name}"
    copy.write_text(yaml.safe_dump(value))
    return copy


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def substituted(expr: str, chosen: Mapping[str, str], span: Span) -> str:
    """An expression of a dashboard with the values of its variables, as Grafana sends it."""
    values = {
        "__rate_interval": f"{2 * RATE_INTERVALS * max(SCRAPE_S, round(span.step_s))}s",
        "__interval": f"{max(1, round(span.step_s))}s",
        "__range": f"{max(1, round(span.end_s - span.start_s))}s",
        **chosen,
    }
    return re.sub(r"\$(__)?[a-z_]+", lambda found: values[found[0][1:]], expr)
