"""What of a process's I/O and CPU time counts as progress, and in which phase."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.policy.activity import BUSY_S, CPU_S, IO_BYTES, Usage, is_working
from orchestrator.domain.policy.hang import STEP_PHASES, Phase

pytestmark = pytest.mark.unit

NOTHING = Usage()
READS = Usage(io_bytes=IO_BYTES)
COMPUTES = Usage(cpu_s=CPU_S)
COMPILES = Usage(children_cpu_s=CPU_S)
BUSY = Usage(10 * IO_BYTES, 100.0, 100.0)
usages = st.builds(Usage, st.integers(0, 1 << 50), st.floats(0, 1e6), st.floats(0, 1e6))


@pytest.mark.parametrize(
    ("phase", "counting"),
    [
        (Phase.IMPORT, {"io", "cpu", "children"}),
        (Phase.MODEL, {"io", "cpu", "children"}),
        (Phase.BUILD, {"io", "children"}),  # a wait for NCCL is a busy loop
        (Phase.RESTORE, {"io"}),
        (Phase.CHECKPOINT, {"io"}),
        (Phase.EXPORT, {"io", "cpu"}),
        (Phase.DATA, {"io"}),
        (Phase.RENDEZVOUS, set()),
        (Phase.FORWARD, set()),
        (Phase.EXCHANGE, set()),
    ],
)
def test_only_what_a_hang_cannot_move_counts(phase: Phase, counting: set[str]) -> None:
    used = {"io": READS, "cpu": COMPUTES, "children": COMPILES}
    assert {name for name, usage in used.items() if is_working(NOTHING, usage, phase, 60.0)} == counting


@given(usages, st.sampled_from(Phase), st.floats(0, 1e6))
def test_a_process_that_uses_nothing_is_not_working(usage: Usage, phase: Phase, idle_s: float) -> None:
    assert not is_working(usage, usage, phase, idle_s)


@given(st.sampled_from(sorted(STEP_PHASES - {Phase.DATA})), st.floats(0, 1e6))
def test_in_a_step_only_beats_count(phase: Phase, idle_s: float) -> None:
    assert not is_working(NOTHING, BUSY, phase, idle_s)


def test_log_lines_are_no_progress() -> None:
    assert not is_working(NOTHING, Usage(io_bytes=IO_BYTES - 1), Phase.RESTORE, 60.0)


def test_a_loop_that_never_ends_is_found_at_last() -> None:
    assert is_working(NOTHING, COMPUTES, Phase.MODEL, BUSY_S - 1)
    assert not is_working(NOTHING, COMPUTES, Phase.MODEL, BUSY_S)
    assert is_working(NOTHING, READS, Phase.MODEL, BUSY_S)
