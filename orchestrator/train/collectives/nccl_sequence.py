"""How far this process is in its sequence of NCCL collectives, by torch's flight recorder. For any thread."""

import json

import torch

from orchestrator.domain.policy.hang import CollectiveCounts


def nccl_counts() -> CollectiveCounts | None:
    """Collectives that this process has enqueued, and that its device has started and completed, over all groups.

    Every rank calls the same collectives in the same order, so the numbers of two ranks can be compared. None if torch
    has no NCCL, or if the recorder is off. Source of the format: torch's `FlightRecorderDetail.hpp`, `pg_status`.
    """
    dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", None)
    return None if dump is None else read_status(dump(includeCollectives=False, onlyActive=False))


def read_status(trace: bytes | str) -> CollectiveCounts | None:
    """The sums over all groups of a trace; None if it holds no group."""
    groups = json.loads(trace).get("pg_status", {}).values()
    if not groups:
        return None

    def total(what: str) -> int:
        # -1: none so far
        return sum(max(0, int(group[f"last_{what}_collective"])) for group in groups)

    return CollectiveCounts(total("enqueued"), total("started"), total("completed"))
