"""How many requests each caller may make: token buckets (https://en.wikipedia.org/wiki/Token_bucket)."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

MOST_BUCKETS = 10_000
"""Callers that are remembered; the one that was silent longest is forgotten first."""


@dataclass(frozen=True)
class Bucket:
    """What one caller has left."""

    left: float
    at_s: float
    """Monotonic seconds."""


def take(bucket: Bucket, now_s: float, per_s: float, burst: float) -> tuple[Bucket, float]:
    """(the bucket after one request, 0), or (the bucket, seconds until a request is allowed). Pure."""
    left = min(burst, bucket.left + (now_s - bucket.at_s) * per_s)
    if left >= 1.0:
        return Bucket(left - 1.0, now_s), 0.0
    return Bucket(left, now_s), (1.0 - left) / per_s


class RateLimiter:
    """The buckets of all callers. Thread-safe."""

    def __init__(self, per_s: float, burst: float) -> None:
        """`per_s`: requests a caller may make in the long run; `burst`: at once."""
        self._per_s, self._burst = per_s, burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, caller: str, now_s: float) -> float:
        """0 and the request counts, or the seconds until the caller may ask again. `now_s`: monotonic."""
        with self._lock:
            bucket = self._buckets.pop(caller, None) or Bucket(self._burst, now_s)
            self._buckets[caller], wait_s = take(bucket, now_s, self._per_s, self._burst)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
            return wait_s
