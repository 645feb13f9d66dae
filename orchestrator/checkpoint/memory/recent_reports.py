"""Reports of the last steps, kept beside the state: what a driver that died had yet to write down."""

import threading

KEPT = 512
"""Steps that workers may make after their driver has died, before Ray ends them; each is some KiB."""


class Reports:
    """Of each step the newest report, as bytes. A step that comes again supersedes itself and all after it."""

    def __init__(self) -> None:
        self._reports: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def put(self, step: int, data: bytes) -> None:
        """Keep a report, and drop the oldest if there are too many."""
        with self._lock:
            for later in [known for known in self._reports if known >= step]:
                del self._reports[later]
            self._reports[step] = data
            if len(self._reports) > KEPT:
                del self._reports[min(self._reports)]

    def after(self, step: int) -> list[bytes]:
        """Reports of the steps `step + 1`, `step + 2` and so on, up to the first missing one."""
        found: list[bytes] = []
        with self._lock:
            while (data := self._reports.get(step + 1 + len(found))) is not None:
                found.append(data)
        return found
