"""`python -m tests.bench.scraper URL`: scrapes as Prometheus does until stdin ends; then prints what it did as JSON. A
process of its own, so that only the answering is the driver's."""

import json
import sys
import threading
import time
import urllib.request

INTERVAL_S = 2.0
"""Long enough for several steps without a scrape between two with one."""
HEADERS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4", "Accept-Encoding": "gzip"}
"""Of Prometheus."""


def main(url: str) -> None:
    """Every scrape: when it began, how long it took, the bytes of the answer."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    scrapes: list[tuple[float, float, int]] = []
    due_s = time.monotonic()
    while not over.wait(max(0.0, due_s - time.monotonic())):
        due_s += INTERVAL_S
        began_s, clock_s = time.time(), time.perf_counter()
        with urllib.request.urlopen(urllib.request.Request(url, headers=HEADERS), timeout=10.0) as answer:
            size_bytes = len(answer.read())
        scrapes.append((began_s, time.perf_counter() - clock_s, size_bytes))
    print(json.dumps(scrapes), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
