"""The proof of the data for a report: made if that is cheap enough, else the report says how to make it."""

from dataclasses import dataclass

from orchestrator.base_error import ConvoyError
from orchestrator.data.samples.data_verify import Proof
from orchestrator.run_facts.run_model import RunFacts
from orchestrator.store.data_proof import prove

PROOF_TOKENS = 50_000_000
"""A proof reads every token again: so many take some seconds."""
PROOF_TOKENS_AT_END = 2_000_000
"""The same at the end of a run, which must not take longer because of it."""


@dataclass(frozen=True)
class ReportedProof:
    """A proof, or why there is none."""

    proof: Proof | None
    reason: str = ""


def proof_of(run: RunFacts, most_tokens: int) -> ReportedProof:
    """Replay the data if the run consumed at most so many tokens."""
    command = f"`convoy data verify {run.record.id}` makes it"
    totals = run.steps.series.totals
    if not totals.steps:
        return ReportedProof(None, "No step was finished: there is nothing to prove.")
    if run.record.active:
        return ReportedProof(None, f"The run is in progress; {command} of the steps so far.")
    if totals.tokens > most_tokens:
        return ReportedProof(None, f"The proof was not made with this report; {command}.")
    try:
        return ReportedProof(prove(run.record))
    except (ConvoyError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        return ReportedProof(None, f"The proof could not be made: {reason}")
