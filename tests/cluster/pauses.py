"""Points at which a process of a run stands still until a test lets it go, so that a fault can be made to hit there.

A test arms one point (what, at which step, of which rank); the first process that comes to it says so and waits. The
two sides meet in a directory that the processes find in their environment. The product knows nothing of it: workers
run `train_with_pauses`, vaults are `PausingVaultActor`s.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.memory import cells, vault_writer, wire
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.session import Leave, Session, TrainPlan, TrainResult
from orchestrator.gang.vaults.vault_actor import VaultActor
from tests.cluster.entries import gang_of
from tests.cluster.train_processes import late_copies

VARIABLE = "CONVOY_TEST_PAUSES"
LATE_VARIABLE = "CONVOY_TEST_LATE_COPIES_S"
"""If it is set, snapshots are copied beside the next step, as on a GPU, with a pause of so many seconds after each
piece."""
ENTRY = f"{__name__}:train_with_pauses"
PACE_S = 0.03
LONGEST_S = 90.0


class Point(StrEnum):
    """Where."""

    BEGIN = "begin"
    """Of a step: nobody has computed anything of it."""
    STEP = "step"
    """Between forward and backward."""
    SNAPSHOT = "snapshot"
    """The state is copied into the slot; the slot does not say so yet."""
    REPLICATION = "replication"
    """Half of a slot has been sent to the peer's vault."""
    DURABLE = "durable"
    """The vault has written a shard of a checkpoint and has not said so: there is no manifest."""
    RESTORE = "restore"
    """Of a gang that is not the first: the engine is built, no state is read. At whatever step."""
    EXPORT = "export"
    """The model's weights are written, the export is not complete. At whatever step."""


class Pauses:
    """The test's side."""

    def __init__(self, directory: Path) -> None:
        """A directory that is the test's own. Set `VARIABLE` to it before anything is started."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def arm(self, point: Point, step: int, rank: int, hold: bool = True) -> None:
        """Pause there, once. `hold`: workers that come to a step boundary meanwhile stand still too."""
        whole = self._directory / "armed.new"
        whole.write_text(json.dumps({"point": point, "step": step, "rank": rank, "hold": hold}))
        for name in ("reached", "go"):
            (self._directory / name).unlink(missing_ok=True)
        whole.rename(self._directory / "armed")

    @property
    def reached(self) -> int | None:
        """The pid of the process that stands still there; None where nobody has come to it."""
        try:
            return int((self._directory / "reached").read_text())
        except FileNotFoundError:
            return None

    def release(self) -> None:
        """Let it go on."""
        (self._directory / "go").touch()


def _read() -> tuple[Path, dict[str, Any]] | None:
    directory = Path(os.environ.get(VARIABLE, "/nonexistent"))
    try:
        return directory, json.loads((directory / "armed").read_text())
    except FileNotFoundError:
        return None


def is_armed(point: Point, step: int, rank: int) -> bool:
    """Whether a test waits for this."""
    found = _read()
    if found is None:
        return False
    directory, armed = found
    same = (armed["point"], armed["rank"]) == (point, rank) and (
        point in (Point.RESTORE, Point.EXPORT) or armed["step"] == step
    )
    return same and not (directory / "reached").exists()


def pause_at(point: Point, step: int, rank: int) -> None:
    """Stand still here, where a test has armed it and nobody has come to it before."""
    if not is_armed(point, step, rank):
        return
    directory, _ = _read() or (Path(), {})
    mine = directory / f"reached-{os.getpid()}"
    mine.write_text(str(os.getpid()))
    try:
        os.link(mine, directory / "reached")
    except FileExistsError:
        return
    _wait(lambda: not (directory / "go").exists())


def _hold(wanted: Callable[[], bool]) -> None:
    """Stand still at a step boundary while somebody else stands still at the point, until training is to be left."""
    found = _read()
    if found is not None and found[1]["hold"]:
        directory = found[0]
        _wait(lambda: (directory / "reached").exists() and not (directory / "go").exists() and not wanted())


def _wait(while_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while while_true() and time.monotonic() < deadline:
        time.sleep(0.005)


class PausingSession:
    """The session of a worker that may pause; its steps take `PACE_S` longer."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def beat(self, step: int, phase: Phase) -> None:
        """As the session's."""
        self._session.beat(step, phase)
        if phase is Phase.DATA:
            pause_at(Point.BEGIN, step, self._session.rank)
        elif phase is Phase.BACKWARD:
            pause_at(Point.STEP, step, self._session.rank)
        elif phase is Phase.RESTORE and gang_of(self._session) > 1:
            pause_at(Point.RESTORE, step, self._session.rank)

    def leave(self) -> Leave:
        """As the session's; late."""
        time.sleep(PACE_S)
        _hold(lambda: self._session.leave() is not Leave.NO)
        return self._session.leave()


def train_with_pauses(session: Session, plan: TrainPlan) -> TrainResult:
    """Train for real."""
    from orchestrator.train.worker import run_worker

    piece_s = os.environ.get(LATE_VARIABLE)
    late = late_copies(None if piece_s is None else float(piece_s))
    with _pausing_snapshots(session.rank), _pausing_export(session.rank), late:
        return run_worker(PausingSession(session), plan)  # type: ignore[arg-type]


@contextmanager
def _pausing_snapshots(rank: int) -> Iterator[None]:
    finish = cells.Cell.finish

    def finish_late(self: cells.Cell, slot: int, step: int, state: bytes) -> None:
        pause_at(Point.SNAPSHOT, step, rank)
        finish(self, slot, step, state)

    cells.Cell.finish = finish_late  # type: ignore[method-assign]
    try:
        yield
    finally:
        cells.Cell.finish = finish  # type: ignore[method-assign]


@contextmanager
def _pausing_export(rank: int) -> Iterator[None]:
    from orchestrator.train.convert import export

    write_config = export._write_config

    def write_late(*arguments: Any) -> None:
        pause_at(Point.EXPORT, 0, rank)
        write_config(*arguments)

    export._write_config = write_late
    try:
        yield
    finally:
        export._write_config = write_config


class PausingVaultActor(VaultActor):
    """A vault whose copies and shards may pause: so there are copies, on one machine too."""

    shares = False

    def __init__(self, token: str, fate_share: bool, kept_s: float | None) -> None:
        _make_copies_pause()
        _make_writes_pause()
        super().__init__(token, fate_share, kept_s)


def _make_copies_pause() -> None:
    send_file = wire.Channel.send_file

    def halting(
        self: wire.Channel, header: dict[str, Any], first: bytes, descriptor: int, offset: int, count: int
    ) -> None:
        step, rank = int(header.get("step", -1)), int(header.get("rank", -1))
        if header.get("do") != "copy" or not is_armed(Point.REPLICATION, step, rank):
            send_file(self, header, first, descriptor, offset, count)
            return
        data = first + os.pread(descriptor, count, offset)
        self._socket.sendall(wire.encode(header, len(data)) + data[: len(data) // 2])
        pause_at(Point.REPLICATION, step, rank)
        self._socket.sendall(data[len(data) // 2 :])

    wire.Channel.send_file = halting  # type: ignore[method-assign]


def _make_writes_pause() -> None:
    write_shard = vault_writer.write_shard

    def late(storage: Any, name: str, rank: int, *rest: Any) -> Any:
        entry = write_shard(storage, name, rank, *rest)
        pause_at(Point.DURABLE, int(name.rpartition("-")[2]), rank)
        return entry

    vault_writer.write_shard = late  # type: ignore[assignment]


def let_runs_pause(replace: Callable[[object, str, Any], None] = setattr) -> None:
    """From now on runs that this process drives can pause. `replace` sets an attribute, for a while or for good."""
    import ray

    from orchestrator.gang.vaults import vault_clients
    from orchestrator.run import launcher

    def pausing_vaults() -> Any:
        return ray.remote(max_restarts=0, max_task_retries=0)(type("ConvoyVault", (PausingVaultActor,), {}))

    replace(vault_clients, "_actor_class", pausing_vaults)
    replace(launcher, "TRAIN_ENTRY", ENTRY)
