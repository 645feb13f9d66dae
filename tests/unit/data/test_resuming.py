"""What was changed between a stop and a resume: noticed, named, and gone on with only where it was accepted."""

import dataclasses
import os
import shutil
from collections.abc import Callable

import pytest

from orchestrator.data.prepare import PreparedData
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunState
from orchestrator.store.data_proof import prove
from orchestrator.store.fingerprint_file import read_history
from orchestrator.store.input_recording import require_same
from orchestrator.store.resume_check import Resumption
from orchestrator.store.run_store import RunStore
from tests.unit.data.corpora import Bench
from tests.unit.data.trained import STEPS, TrainedRun, edit, phases, refused, text

pytestmark = pytest.mark.unit


@pytest.fixture
def run(bench: Bench) -> TrainedRun:
    return TrainedRun(bench)


def touch(run: TrainedRun) -> None:
    for path in run.bench.root.glob("texts/*"):
        os.utime(path, (12345, 12345))


def copied(run: TrainedRun) -> None:
    shutil.copytree(run.bench.root / "texts", run.bench.root / "copy")
    shutil.rmtree(run.bench.root / "texts")
    (run.bench.root / "copy").rename(run.bench.root / "texts")


def renamed_in_order(run: TrainedRun) -> None:
    text(run, 5).rename(text(run, 9))


def everything_else(run: TrainedRun) -> None:
    for old, new in (("lr: 0.001", "lr: 0.002"), ("steps: 100", "steps: 200"), ("workers: 1", "workers: 2"),
                     ("stage: 1", "stage: 3"), ("bad_records: skip", "bad_records: error")):  # fmt: skip
        run.edit_spec(old, new)


@pytest.mark.parametrize("change", [touch, copied, renamed_in_order, everything_else, lambda run: None])
def test_what_changes_nothing_is_gone_on_with_in_silence(run: TrainedRun, change: Callable[[TrainedRun], None]) -> None:
    change(run)
    prepared = run.prepared
    found, data = run.go_on()
    assert (found.changes, found.warnings) == ((), ())
    assert data.directory == prepared
    assert len(read_history(run.layout)) == 1
    assert run.examine().prepared == prepared


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.bench.write("texts/zz.txt", "more"), "1 file was added to texts/*.txt: texts/zz.txt"),
        (lambda run: edit(text(run, 3)), r"1 file was edited in texts/*.txt: texts/t3.txt (still "),
        (lambda run: text(run, 3).open("a").write("more") and None, "1 file has more text at its end in texts/*.txt"),
        (lambda run: text(run, 2).unlink(), "1 file was removed from texts/*.txt: texts/t2.txt"),
        (lambda run: text(run, 0).rename(text(run, 9)), "1 file was renamed in texts/*.txt: texts/t0.txt -> texts/t9"),
        (lambda run: run.edit_spec("seed: 0", "seed: 1"), "train.seed: 0 -> 1"),
        (lambda run: run.edit_spec("packing: true", "packing: false"), "data.packing: true -> false"),
        (lambda run: run.edit_spec("format: auto", "format: lines"), "read in another format in texts/*.txt"),
    ],
)
def test_other_data_is_refused_and_named(run: TrainedRun, change: Callable[[TrainedRun], None], said: str) -> None:
    change(run)
    message = refused(run)
    assert f"the data of run {run.layout.run_id} has changed since it was trained" in message
    assert said in message


@pytest.mark.parametrize("change", [lambda run: edit(text(run, 3)), lambda run: text(run, 2).unlink()])
def test_accepted_data_is_made_with_the_runs_own_tokenizer(
    run: TrainedRun, change: Callable[[TrainedRun], None]
) -> None:
    own, before = run.tokenizer(), run.prepared
    change(run)
    found, data = run.go_on(accept=True)
    assert "tokenizer" not in phases(run)
    assert data.directory != before
    assert (run.tokenizer().key, data.manifest.vocab_size) == (own.key, own.vocab_size)
    first, second = read_history(run.layout)
    assert (first.first_record, second.first_record, second.from_step) == (0, STEPS, STEPS)
    assert [dict(each) for each in second.accepted] == [change.to_json() for change in found.changes]
    # From then on it is what the run is trained with.
    assert run.examine().changes == ()


def test_a_new_job_on_the_changed_text_trains_its_own_tokenizer(run: TrainedRun) -> None:
    edit(text(run, 3))
    _, data = run.go_on(accept=True)
    assert run.bench.prepare(run.spec).manifest.tokens_fingerprint != data.manifest.tokens_fingerprint
    assert "tokenizer" in phases(run)


def test_texts_that_are_all_gone_do_not_stop_a_run_whose_data_is_whole(run: TrainedRun) -> None:
    shutil.rmtree(run.bench.root / "texts")
    for _ in range(2):
        found, data = run.go_on()
        assert data.cached
        assert found.changes == ()
        assert ["all files of texts/*.txt are gone" in each for each in found.warnings] == [True]
    shutil.rmtree(data.directory)
    message = refused(run, accept=True)
    assert "all files of texts/*.txt are gone" in message
    assert "put them back" in message


def test_a_source_that_is_gone_is_needed_where_another_changed(bench: Bench) -> None:
    bench.write("more/m.txt", "the convoy goes on " * 50)
    run = TrainedRun(
        bench, data={"sources": [{"files": ["texts/*.txt"]}, {"files": ["more/*"]}], "sequence_length": 16}
    )
    shutil.rmtree(bench.root / "more")
    assert run.examine().prepared == run.prepared
    edit(text(run, 1))
    assert "needed to prepare the data again" in refused(run, accept=True)


def test_what_is_accepted_has_to_be_there(bench: Bench) -> None:
    bench.write("a.txt", "the convoy goes on " * 50)
    run = TrainedRun(bench, data={"sources": [{"files": ["a.txt", "texts/t0.txt"]}], "sequence_length": 16})
    (bench.root / "a.txt").unlink()
    assert "1 file was removed" in refused(run)
    with pytest.raises(UsageError, match=r"there is no file a\.txt"):
        run.examine(accept=True)


def damaged(run: TrainedRun) -> None:
    path = run.prepared / "s0.train.tokens"
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff")
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    "lose",
    [
        lambda run: shutil.rmtree(run.bench.cache),
        lambda run: shutil.rmtree(run.prepared),
        lambda run: os.truncate(run.prepared / "s0.train.tokens", 64),
        lambda run: (run.prepared / "tokenizer" / "tokenizer.json").write_text("{}"),
        damaged,
    ],
)
@pytest.mark.parametrize("touched", [False, True])
def test_a_cache_that_is_lost_or_damaged_is_made_again_and_the_same(
    run: TrainedRun, lose: Callable[[TrainedRun], None], touched: bool
) -> None:
    own = run.tokenizer()
    lose(run)
    if touched:
        touch(run)
    found, data = run.go_on()
    assert found.changes == ()
    assert "tokenizer" not in phases(run)
    require_same(data, found.history[-1].data, accepted=False)
    assert run.tokenizer().key == own.key
    assert prove(RunStore(run.layout.root.parent).read(run.layout.run_id)).ok
    assert run.examine().prepared == data.directory


def test_data_that_comes_out_different_is_refused(run: TrainedRun, bench: Bench) -> None:
    last = read_history(run.layout)[-1].data
    bench.write("texts/zz.txt", "other text " * 100)
    other: PreparedData = bench.prepare(run.spec)
    with pytest.raises(UsageError, match="the result differs"):
        require_same(other, last, accepted=False)
    require_same(other, last, accepted=True)


def test_runs_that_were_moved_find_their_data(run: TrainedRun) -> None:
    home = run.bench.root / "moved"
    (run.bench.root / "runs").rename(home)
    run.layout, run.bench.cache = type(run.layout)(home / run.layout.run_id), home / "cache"
    found = run.examine()
    assert found.prepared is not None
    assert found.prepared.is_relative_to(home)
    assert prove(RunStore(home).read(run.layout.run_id)).ok


def test_a_global_batch_cannot_change_even_where_changes_are_accepted(run: TrainedRun) -> None:
    run.edit_spec("global_batch: 12", "global_batch: 24")
    assert "train.global_batch: 12 -> 24" in refused(run)
    assert "steps are counted in global batches" in refused(run, accept=True)
    assert prove(RunStore(run.layout.root.parent).read(run.layout.run_id)).ok  # of the batch that it had


def test_a_trained_tokenizer_is_never_trained_again(run: TrainedRun) -> None:
    run.edit_spec("vocab_size: 300", "vocab_size: 320")
    assert "the tokenizer of a run is never trained again" in refused(run, accept=True)


def test_a_seed_that_is_accepted_makes_no_tokens_again(run: TrainedRun) -> None:
    run.edit_spec("seed: 0", "seed: 1")
    _, data = run.go_on(accept=True)
    assert (data.cached, data.manifest.seed) == (True, 1)


def test_a_run_that_was_never_trained_has_nothing_to_be_compared_with(run: TrainedRun) -> None:
    run.layout.steps.unlink()
    edit(text(run, 3))
    assert run.examine() == Resumption()
    _, data = run.go_on(from_step=0)
    (entry,) = read_history(run.layout)
    assert (entry.data.fingerprint, entry.compared) == (data.manifest.fingerprint, True)
    # With a checkpoint it has.
    run.layout.checkpoint(5).mkdir(parents=True)
    edit(text(run, 3), "CONVOY", "convoy")
    refused(run)


def forget(run: TrainedRun) -> None:
    """As a version of Convoy left it that recorded no fingerprints."""
    run.layout.fingerprints.unlink()
    run.layout.contents.unlink()
    shutil.rmtree(run.layout.tokenizer)


def test_a_run_of_an_older_version_goes_on_with_a_warning_and_is_recorded(run: TrainedRun) -> None:
    forget(run)
    edit(text(run, 3))
    prepared = run.prepared
    found, data = run.go_on()
    assert found.changes == ()
    assert "recorded no fingerprints" in found.warnings[0]
    assert data.directory == prepared
    (entry,) = read_history(run.layout)
    assert entry.compared is False
    assert run.examine().warnings == ()
    edit(text(run, 3), "CONVOY", "convoy")
    assert "1 file was edited" in refused(run)


def test_a_run_of_an_older_version_without_its_data_says_so(run: TrainedRun) -> None:
    forget(run)
    shutil.rmtree(run.bench.cache)
    found, _ = run.go_on()
    assert "its prepared data is incomplete" in found.warnings[1]


def test_damaged_records_are_said_not_raised(run: TrainedRun) -> None:
    run.layout.contents.write_text("{")
    found = run.examine()
    assert found.prepared == run.prepared
    assert "the files of the data cannot be compared" in found.warnings[0]


@pytest.mark.parametrize("text", ["{", '{"format_version": 1, "history": [{"data": 1}]}', '{"format_version": 2}'])
def test_fingerprints_that_cannot_be_read_are_not_passed_over(run: TrainedRun, text: str) -> None:
    run.layout.fingerprints.write_text(text)
    with pytest.raises(UsageError, match=r"fingerprints\.json (is damaged|has format 2)"):
        run.examine(accept=True)


def test_parts_with_other_data_are_proved_each_against_its_own(run: TrainedRun) -> None:
    record = RunStore(run.layout.root.parent).read
    edit(text(run, 3))
    _, data = run.go_on(accept=True, from_step=15)
    run.train(data, 16, 30)
    proof = prove(record(run.layout.run_id))
    assert (proof.ok, proof.steps, proof.superseded) == (True, 30, 5)
    assert [(part.first_step, part.last_step, part.problem) for part in proof.parts] == [(1, 15, None), (16, 30, None)]
    text(run, 1).unlink()
    _, third = run.go_on(accept=True, from_step=30)
    run.train(third, 31, 40)
    assert [part.first_step for part in prove(record(run.layout.run_id)).parts] == [1, 16, 31]
    shutil.rmtree(data.directory)
    proof = prove(record(run.layout.run_id))
    assert (proof.ok, proof.steps) == (False, 40)
    assert [bool(part.problem) for part in proof.parts] == [False, True, False]
    assert "cannot be compared" in str(proof.mismatch)


def test_steps_fed_from_other_data_than_recorded_fail_the_proof(run: TrainedRun) -> None:
    edit(text(run, 3))
    run.go_on(accept=True)
    first = read_history(run.layout)[0]
    old = run.bench.root / "old"
    shutil.copytree(first.data.directory, old)
    run.train(PreparedData(old, dataclasses.replace(run.bench.prepare(run.spec).manifest), True), 21, 25)
    proof = prove(RunStore(run.layout.root.parent).read(run.layout.run_id))
    assert proof.mismatch is not None
    assert proof.mismatch.step == 21
    assert RunStore(run.layout.root.parent).read(run.layout.run_id).state is RunState.STOPPED
