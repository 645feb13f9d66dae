"""The export at the end of a run: whole or not there, whether or not the driver's files are seen."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.format.exported import export_problem
from orchestrator.domain.errors import CheckpointError, UsageError
from orchestrator.domain.events import EventBody, ModelExported, SampleGenerated, WarningIssued
from orchestrator.domain.run_layout import RunLayout
from orchestrator.gang.file_transfer import Files, FileServer, write_marker
from orchestrator.spec.job import JobSpec
from orchestrator.train.convert import export, exporting
from orchestrator.train.convert.exporting import export_run
from orchestrator.train.convert.generate import generate
from tests.events import recorded
from tests.unit.train.exportable import checkpoint, job, prepared_data

pytestmark = pytest.mark.unit


class Session:
    """What an export asks of a session, over real file transport."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.events: list[tuple[type[EventBody], dict[str, Any]]] = []
        self.fetch, self.store, self.move_into_place = files.fetch, files.store, files.move_into_place

    @property
    def shares_files(self) -> bool:
        return self.files.shared

    def progress(self) -> None:
        """Nobody watches."""

    def report_event(self, body: EventBody) -> None:
        self.events.append(recorded(body))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, Path, Path]:
    """Spec, prepared data and a checkpoint of step 7."""
    spec, directory = job("gpt2"), tmp_path_factory.mktemp("trained")
    data_dir = prepared_data(tmp_path_factory.mktemp("data"))
    return spec, data_dir, checkpoint(spec, data_dir, directory)[1]


Make = Callable[[str], Any]
WAYS = pytest.mark.parametrize("way", ["shared", "remote"])


@pytest.fixture
def make(trained: tuple[JobSpec, Path, Path], tmp_path: Path) -> Make:
    """A context of a new attempt: the driver's files are `shared`, or `remote`."""
    spec, data_dir, saved = trained
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    marker, word = write_marker(run_dir)

    def context(way: str) -> Any:
        server = FileServer((str(run_dir), str(data_dir), str(saved)), str(run_dir))
        env = {"CONVOY_FILE_TRANSPORT": "remote"} if way == "remote" else {}
        session = Session(Files(server, str(marker), word, tmp_path / "cache", env))
        return SimpleNamespace(
            session=session, spec=spec, plan=SimpleNamespace(run_dir=str(run_dir), data_dir=str(data_dir))
        )

    return context


def export_of(context: Any, saved: str | None, step: int) -> None:
    export_run(context.session, context.plan, context.spec, saved, step)


def left(context: Any) -> list[str]:
    names = [path.name for path in Path(context.plan.run_dir).iterdir()]
    return sorted(name for name in names if name != ".visible")


@WAYS
def test_it_is_whole_and_nothing_else_is_left(make: Make, trained: tuple[JobSpec, Path, Path], way: str) -> None:
    for _ in range(2):  # again, after a recovery
        context = make(way)
        export_of(context, str(trained[2]), 7)
        assert export_problem(RunLayout(Path(context.plan.run_dir)).export, 7) is None
        assert left(context) == ["export"]
        ((kind, fields),) = context.session.events
        assert (kind, fields["path"]) == (ModelExported, str(Path(context.plan.run_dir) / "export"))


@pytest.mark.parametrize(("way", "point"), [("shared", 1), ("remote", 1), ("remote", 4), ("shared", 9), ("remote", 9)])
def test_one_that_breaks_off_is_not_there_and_the_next_is_whole(
    make: Make, trained: tuple[JobSpec, Path, Path], monkeypatch: pytest.MonkeyPatch, way: str, point: int
) -> None:
    """While its files are written (1), sent (2 to 8), or moved (9)."""
    context, calls = make(way), [1]

    def breaking(really: Callable[..., None], number: int | None) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            calls[0] += number is None
            if (number or calls[0]) == point:
                raise ConnectionError("the worker is gone")
            really(*arguments)

        return call

    monkeypatch.setattr(export, "_write_config", breaking(export._write_config, 1))
    context.session.store = breaking(context.session.store, None)
    context.session.move_into_place = breaking(context.session.move_into_place, 9)
    with pytest.raises(ConnectionError):
        export_of(context, str(trained[2]), 7)
    monkeypatch.undo()
    final = RunLayout(Path(context.plan.run_dir)).export
    assert not final.exists()
    assert context.session.events == []
    export_of(make(way), str(trained[2]), 7)
    assert export_problem(final, 7) is None


def test_without_a_checkpoint_of_the_step_it_fails(make: Make, trained: tuple[JobSpec, Path, Path]) -> None:
    context = make("shared")
    with pytest.raises(CheckpointError, match="no checkpoint of step 8"):
        export_of(context, None, 8)
    with pytest.raises(CheckpointError, match="is of step 7, not 8"):
        export_of(context, str(trained[2]), 8)
    assert left(context) == []


def test_what_is_no_export_is_not_replaced(make: Make, trained: tuple[JobSpec, Path, Path]) -> None:
    context = make("shared")
    thesis = Path(context.plan.run_dir) / "export" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(UsageError, match="not replaced"):
        export_of(context, str(trained[2]), 7)
    assert thesis.read_text() == "years of work"


def run_out_of_memory(*_: Any) -> str:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def damage_the_model(model: Path, *_: Any) -> str:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    return generate(model, "def ", 2, 0.0, 0)


def with_prompt(spec: JobSpec, **fields: Any) -> JobSpec:
    return spec.model_copy(update={"generate": spec.generate.model_copy(update={"prompt": "def ", **fields})})


FAILURES = {
    "refused": (None, "temperature"),
    "a library's error": (run_out_of_memory, "OutOfMemoryError: CUDA out of memory"),
    "damaged meanwhile": (damage_the_model, "model.safetensors"),
}


@pytest.mark.parametrize("case", sorted(FAILURES))
def test_a_sample_that_cannot_be_made_fails_no_run(
    make: Make, trained: tuple[JobSpec, Path, Path], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The export is in its place by then."""
    context, (instead, words) = make("shared"), FAILURES[case]
    context.spec = with_prompt(trained[0], temperature=-1.0 if instead is None else 0.0)
    if instead is not None:
        monkeypatch.setattr(exporting, "generate", instead)
    export_of(context, str(trained[2]), 7)
    (exported, _), (told, fields) = context.session.events
    assert (exported, told) == (ModelExported, WarningIssued)
    assert "no sample" in fields["message"]
    assert words in fields["message"]


def test_no_sample_is_made_of_a_model_that_the_host_cannot_hold(
    make: Make, trained: tuple[JobSpec, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would end the process, and with it a run whose export is in its place."""
    context = make("shared")
    context.spec = with_prompt(trained[0], max_new_tokens=2)
    export_of(context, str(trained[2]), 7)
    assert context.session.events[-1][0] is SampleGenerated
    monkeypatch.setattr(exporting, "SAMPLE_MEMORY_RATIO", 1e12)
    export_of(context, str(trained[2]), 7)
    told, fields = context.session.events[-1]
    assert told is WarningIssued
    assert "MiB of host memory" in fields["message"]
