"""What a Prometheus knew of some runs, in a file that a later one can read."""

import json
import lzma
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.monitoring.prometheus_server import PrometheusServer, Span

FILE = Path(__file__).with_name("recording.json.xz")
EVERYTHING = '{__name__=~"convoy_.*|node_.*|DCGM_.*|ALERTS"}'
DIGITS = 7
"""Significant ones of a value."""


@dataclass(frozen=True)
class Recording:
    """All series over a span. A value is None if there was none at that time."""

    span: Span
    main: str
    """The run that the dashboards of one run show."""
    job: str
    """Its job."""
    gpus: str
    """The run on GPUs."""
    series: list[tuple[dict[str, str], list[float | None]]]

    def save(self, path: Path = FILE) -> None:
        path.write_bytes(lzma.compress(json.dumps(asdict(self), separators=(",", ":")).encode(), preset=9))

    @classmethod
    def load(cls, path: Path = FILE) -> "Recording":
        value: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
        return cls(Span(**value.pop("span")), **value)

    def serve(self, directory: Path) -> PrometheusServer:
        """A Prometheus that answers as the recorded one would have."""
        text = directory / "recording.om"
        with text.open("w") as file:
            file.writelines(self.samples())
        done = subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(directory / "tsdb")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return PrometheusServer(directory, {})

    def samples(self) -> Iterator[str]:
        """Lines of OpenMetrics."""
        for labels, values in self.series:
            inner = ",".join(f"{name}={json.dumps(text)}" for name, text in labels.items() if name != "__name__")
            for index, value in enumerate(values):
                if value is not None:
                    yield f"{labels['__name__']}{{{inner}}} {value!r} {self.span.start_s + index * self.span.step_s}\n"
        yield "# EOF\n"


def recorded(server: PrometheusServer, span: Span, main: str, job: str, gpus: str) -> Recording:
    """Everything that the server knows of a span."""
    times = [
        round(span.start_s + index * span.step_s, 3) for index in range(int((span.end_s - span.start_s) / span.step_s))
    ]
    found = []
    for series in server.range(EVERYTHING, span):
        known = {round(float(time_s), 3): float(f"{float(text):.{DIGITS}g}") for time_s, text in series["values"]}  # type: ignore[attr-defined]
        found.append((dict(series["metric"]), [known.get(time_s) for time_s in times]))  # type: ignore[call-overload]
    return Recording(span, main, job, gpus, found)
