"""Surveys a run's vaults every few seconds, in threads that the driver's loop never waits for."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from orchestrator.checkpoint.memory.copy_totals import CopyFigures
from orchestrator.checkpoint.memory.frames import (
    InventoryAnswer,
    InventoryRequest,
    ReportsAnswer,
    ReportsRequest,
    decode,
)
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.checkpoint.survey.durability import VaultReport
from orchestrator.checkpoint.survey.inventory import Holding
from orchestrator.json_values import JsonObject
from orchestrator.lasting_thread import LastingThread

SURVEY_S = 2.0
ASK_TIMEOUT_S = 1.0
CLOSE_S = 10.0
_THREADS = 8


@dataclass(frozen=True)
class VaultContact:
    """How to reach a vault."""

    node: str
    """Ray's id of its node."""
    address: str
    token: str = field(repr=False)


def holdings(address: str, answer: JsonObject) -> tuple[Holding, ...]:
    """The holdings in a vault's answer to `inventory`."""
    return _holdings(address, decode(InventoryAnswer, answer))


def _holdings(address: str, said: InventoryAnswer) -> tuple[Holding, ...]:
    return tuple(
        Holding(
            vault=address,
            generation=item["generation"],
            rank=item["rank"],
            world_size=item["world_size"],
            step=item["step"],
            own=item["own"],
            size_bytes=item["bytes"],
        )
        for item in said["held"]
    )


def ask_reports(contact: VaultContact, after: int) -> list[bytes]:
    """Reports that a vault keeps of the steps after one. Raises OSError."""
    channel = Channel.connect(contact.address, contact.token, ASK_TIMEOUT_S)
    try:
        answer, count = channel.ask(ReportsRequest(do="reports", after=after))
        data = channel.take(count)
    finally:
        channel.close()
    found, first = [], 0
    for size in decode(ReportsAnswer, answer)["sizes"]:
        found.append(data[first : first + size])
        first += size
    return found


class Surveyor:
    """Asks until it is closed. A vault that is silent costs a round `ASK_TIMEOUT_S`, and no other round."""

    def __init__(
        self,
        contacts: Callable[[], Sequence[VaultContact]],
        take: Callable[[Sequence[VaultReport]], None],
        interval_s: float = SURVEY_S,
    ) -> None:
        """`contacts` returns the vaults to ask, `take` gets the answers; both are called from another thread."""
        self._contacts, self._take, self._interval_s = contacts, take, interval_s
        self._channels: dict[str, Channel] = {}
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="survey")
        self._thread = LastingThread("survey", self._go_round)

    def close(self) -> None:
        """Stop; waits for the present round, at most `CLOSE_S`."""
        self._over.set()
        self._pool.shutdown(wait=self._thread.join(CLOSE_S), cancel_futures=True)
        for channel in self._channels.values():
            channel.close()

    def _go_round(self) -> bool:
        if self._over.wait(self._interval_s):
            return False
        contacts = list(self._contacts())
        known = {contact.address for contact in contacts}
        for gone in [address for address in self._channels if address not in known]:
            self._channels.pop(gone).close()
        self._take(list(self._pool.map(self._answer, contacts)))
        return True

    def _answer(self, contact: VaultContact) -> VaultReport:
        """One report. An invalid answer of a vault does not affect the others."""
        try:
            return self._ask(contact)
        except ValueError as error:
            problem = f"its answer is invalid: {error}"
            return VaultReport(contact.node, contact.address, answers=False, problem=problem)

    def _ask(self, contact: VaultContact) -> VaultReport:
        """One answer. A broken connection is opened again once."""
        for _ in range(2):
            channel = self._channels.pop(contact.address, None)
            fresh = channel is None
            try:
                if channel is None:
                    channel = Channel.connect(contact.address, contact.token, ASK_TIMEOUT_S)
                answer, _ = channel.ask(InventoryRequest(do="inventory"))
            except OSError as error:
                if channel is not None:
                    channel.close()
                if fresh or isinstance(error, TimeoutError):
                    return VaultReport(contact.node, contact.address, answers=False, problem=f"no answer: {error}")
                continue
            self._channels[contact.address] = channel
            said = decode(InventoryAnswer, answer)
            held = _holdings(contact.address, said)
            copies = CopyFigures.from_json(said["copies"]) if "copies" in said else None
            return VaultReport(contact.node, contact.address, True, held, said["memory_bytes"], said["problem"], copies)
        return VaultReport(contact.node, contact.address, answers=False, problem="no answer")
