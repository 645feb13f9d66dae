import hashlib
from pathlib import Path

import pytest

from orchestrator.api.api_settings import ApiSettings
from orchestrator.client.api_errors import ApiError
from orchestrator.client.job_submission import SubmitChoice, submit_job
from orchestrator.client.job_uploads import plan_uploads
from orchestrator.domain.errors import NotFoundError, UsageError
from orchestrator.store.uploads.file_store import KEPT_S, YOUNG_S, FileStore, StoredFile, check_names, to_remove
from orchestrator.wire.run_messages import Submission
from tests.served_queue import JOB, ServedQueue

pytestmark = pytest.mark.unit


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(served: ServedQueue, content: bytes, name: str | None = None) -> int:
    raw = served.raw(served.secret())
    return raw.put(f"/api/v1/files/{name or sha(content)}", content=content).status_code


def test_a_file_is_stored_once_by_its_content(served: ServedQueue) -> None:
    content = b"some text\n"
    with served.client() as client:
        assert client.missing_files([sha(content)]) == [sha(content)]
        assert not client.put_file(sha(content), content).existing
        assert client.put_file(sha(content), content).existing
        assert client.missing_files([sha(content)]) == []
    assert [each.size_bytes for each in served.files.stored()] == [len(content)]


def test_wrong_large_and_misnamed_files_are_refused(served: ServedQueue) -> None:
    served.close()
    small = ServedQueue(served.home, ApiSettings(served.home, max_file_bytes=1000))
    assert put(small, b"x", sha(b"y")) == 422
    assert put(small, b"x" * 1001) == 413
    assert put(small, b"x", "../../etc/passwd") in (404, 405, 422)
    assert put(small, b"x", "A" * 64) == 422
    assert list(small.files.stored()) == []
    assert list((served.home / "server" / "files").glob("*/.*.part")) == []
    small.close()


def test_a_job_travels_with_its_files(served: ServedQueue, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("to be or not to be\n" * 20)
    (tmp_path / "texts" / "b.txt").write_text("that is the question\n" * 20)
    (tmp_path / "texts" / "draft.txt").write_text("x")
    (tmp_path / ".convoyignore").write_text("# not these\ntexts/draft*\n")
    job = tmp_path / "job.yaml"
    job.write_text(JOB.replace("FILES", "texts/*.txt"))
    said: list[tuple[str, bool]] = []
    with served.client() as client:
        first = submit_job(client, job, SubmitChoice(), lambda file, sends: said.append((file.name, sends)))
        submit_job(client, job, SubmitChoice(), lambda file, sends: said.append((file.name, sends)))
    names = ["texts/a.txt", "texts/b.txt"]
    assert said == [(name, True) for name in names] + [(name, False) for name in names]
    copies = sorted(Path(first.runs[0].directory).rglob("texts/*"))
    assert [copy.name for copy in copies] == ["a.txt", "b.txt"]
    assert copies[0].read_text() == (tmp_path / "texts" / "a.txt").read_text()


def test_a_submission_with_files_that_are_missing_or_lead_out_is_refused(served: ServedQueue) -> None:
    with served.client() as client:
        for files, status in (({"a.txt": "0" * 64}, 404), ({"../a.txt": "0" * 64}, 422), ({"/a": "0" * 64}, 422)):
            with pytest.raises(ApiError) as caught:
                client.submit(Submission(spec=served.job(), files=files))
            assert caught.value.status == status
        assert client.runs().runs == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b", "x" * 2000])
def test_paths_of_uploads_stay_below_the_job(name: str) -> None:
    with pytest.raises(UsageError):
        check_names({name: "0" * 64})


def test_a_placed_file_survives_its_removal_from_the_store(tmp_path: Path) -> None:
    store, content = FileStore(tmp_path / "store"), b"text"
    upload = store.begin(sha(content))
    upload.write(content)
    upload.finish()
    store.place({"d/a.txt": sha(content)}, tmp_path / "run")
    assert store.clean(now_s=1e12) == [sha(content)]
    assert (tmp_path / "run" / "d" / "a.txt").read_bytes() == content
    with pytest.raises(NotFoundError):
        store.place({"d/a.txt": sha(content)}, tmp_path / "other")


def test_the_store_keeps_what_is_used_and_its_size_has_a_bound() -> None:
    now_s = 1e9
    old, recent, young = (
        StoredFile("a", 1, now_s - KEPT_S - 1), StoredFile("b", 9 << 30, now_s - 7200), StoredFile("c", 1 << 30, now_s)
    )  # fmt: skip
    assert to_remove([old], now_s) == ["a"]
    assert to_remove([recent, young], now_s) == ["b"]
    assert to_remove([StoredFile("d", 9 << 30, now_s - YOUNG_S + 1)], now_s) == []


def test_what_cannot_be_uploaded_is_used_in_place_on_the_same_machine_or_refused(tmp_path: Path) -> None:
    directory = tmp_path / "jobs"
    directory.mkdir()
    (tmp_path / "outside.txt").write_text("x")
    (directory / "inside.txt").write_text("x")
    source = JOB.replace("FILES", "../outside.txt, inside.txt, /data/*.txt, '${DATA}/x', s3://bucket/x")
    plan = plan_uploads(source, directory, same_machine=True)
    assert [each.name for each in plan.files] == ["inside.txt"]
    assert plan.in_place == {"data.sources.0.files.0": str(tmp_path / "outside.txt")}
    with pytest.raises(UsageError, match="outside") as caught:
        plan_uploads(source, directory, same_machine=False)
    assert "cluster" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "source", ["[" * 10_000, "a: [", "- x", "data: 3", "data: {sources: 3}", "data: {sources: [3]}"]
)
def test_a_job_that_cannot_be_read_names_no_files(source: str, tmp_path: Path) -> None:
    assert plan_uploads(source, tmp_path, same_machine=False).files == ()
