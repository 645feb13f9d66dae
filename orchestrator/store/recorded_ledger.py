"""The ledger of a run as its files hold it."""

from functools import partial

from orchestrator.atomic_files import read_json
from orchestrator.domain.errors import ConvoyError
from orchestrator.domain.run_layout import RunLayout
from orchestrator.goodput.ledger_recorder import shown
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.worker_terms import WorkerTerms, terms_of
from orchestrator.spec.loading.load import load_job
from orchestrator.store.run_history import facts_after


def ledger_of(layout: RunLayout) -> LedgerResult | None:
    """What `ledger.json` says, seconds old in a run that continues; of a run of an earlier version, what follows from
    its records. None if there are none."""
    return shown(read_json(layout.ledger), partial(_terms, layout), partial(facts_after, layout))


def _terms(layout: RunLayout) -> WorkerTerms:
    """Those of the run's spec, or none if this version cannot read it."""
    try:
        return terms_of(load_job(layout.spec).spec)
    except (ConvoyError, OSError):
        return WorkerTerms()
