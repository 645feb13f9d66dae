"""`skips.json`: which samples a run leaves out, and why. The driver alone writes it, before it acts on it."""

from collections.abc import Sequence

from orchestrator.atomic_files import read_json, write_json
from orchestrator.data.samples.skipping_order import BatchOrder
from orchestrator.domain.errors import DataError
from orchestrator.domain.policy.numeric import Skip
from orchestrator.domain.run_layout import RunLayout
from orchestrator.json_values import objects


def read_skips(layout: RunLayout) -> tuple[Skip, ...]:
    """In the order they were decided; none if there is no file.

    Raises DataError if the file is damaged: without it the run would feed samples that were left out.
    """
    if not layout.skips.exists():
        return ()
    value = read_json(layout.skips)
    try:
        return tuple(Skip.from_json(item) for item in objects(value or {}, "skips"))
    except ValueError as error:
        raise DataError(
            f"{layout.skips} is damaged: {error}",
            hint="restore it: it lists the samples that the run leaves out; the events `numeric.fault` have the same",
        ) from error


def write_skips(layout: RunLayout, skips: Sequence[Skip]) -> None:
    """Replace the file durably; without skips no file is written. Raises OSError."""
    if skips or layout.skips.exists():
        write_json(layout.skips, {"skips": [skip.to_json() for skip in skips]})


def order_of(batch: int, skips: Sequence[Skip]) -> BatchOrder:
    """The order of the batches without `skips`. Raises DataError if they are not of whole batches."""
    try:
        return BatchOrder.of(batch, [(skip.first, skip.count) for skip in skips])
    except ValueError as error:
        raise DataError(
            f"the run's record of skipped samples is wrong: {error}",
            hint="skips.json was altered, or train.global_batch in spec.yaml: it must not change within a run",
        ) from error
