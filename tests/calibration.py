"""How fast this machine is now, so that times of two days or two machines can be compared."""

import time

ADDITIONS = 10_000_000
REFERENCE_S = 1.2
"""On the machine that time budgets are stated for."""


LOOP = compile(f"total = 0\nfor number in range({ADDITIONS}):\n    total += number", "loop", "exec")
"""As a script has it: its variables are global, which takes longer than in a function."""


def measure_s() -> float:
    """Seconds that ten million additions take in a Python loop; the best of three."""
    best_s = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        exec(LOOP, {})
        best_s = min(best_s, time.perf_counter() - started)
    return best_s


if __name__ == "__main__":
    seconds = measure_s()
    print(f"calibration: {ADDITIONS:,} additions take {seconds:.2f} s; time budgets are stated for {REFERENCE_S} s")
