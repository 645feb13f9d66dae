"""A run's metrics, scraped while it trains."""

import threading
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

INTERVAL_S = 0.25


class Scraper:
    """Scrapes from `begin` to `end`. A sample keeps its last value, also after its series has ended."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, url: str) -> None:
        self._thread = threading.Thread(target=self._scrape, args=(url,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Idempotent."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def of(self, name: str, **labels: str) -> list[float]:
        """Values of the samples with this name and at least these labels."""
        return [
            value
            for (known, has), value in self._values.items()
            if known == name and labels.items() <= dict(has).items()
        ]

    def _scrape(self, url: str) -> None:
        while not self._over.wait(INTERVAL_S):
            try:
                with urllib.request.urlopen(url, timeout=5.0) as answer:
                    text = answer.read().decode()
            except OSError:  # the run is over, and this test's thread not yet
                continue
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    self._values[sample.name, frozenset(sample.labels.items())] = sample.value
