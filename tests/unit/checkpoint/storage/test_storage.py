"""Directories as storage, what a place may be, and what errors mean."""

import contextlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from obstore.exceptions import GenericError

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, read_manifest
from orchestrator.checkpoint.format.intervals import Kind, Range
from orchestrator.checkpoint.format.shard import Interval
from orchestrator.checkpoint.storage.bucket import BucketStorage, bucket_fault, require_credentials
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, newest_valid
from orchestrator.checkpoint.storage.durable import abandon, write_shard
from orchestrator.checkpoint.storage.storage import (
    LocalStorage,
    StorageError,
    StorageFault,
    StorageLimits,
    locate,
    open_storage,
    require_writable,
)
from orchestrator.domain.errors import CheckpointError, UsageError
from tests.small_disk import mounted_disk
from tests.unit.checkpoint.written import write_checkpoint

pytestmark = pytest.mark.unit
SHORT = StorageLimits(connect_s=1, request_s=2, retries=1, retry_s=2)


def test_a_directory_holds_files_by_checkpoint(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "deep" / "down")
    assert (storage.names(), storage.sizes("step-00000001")) == ([], {})
    storage.put("step-00000001", "a.bin", [b"0123", memoryview(b"456")], 7)
    storage.put("step-00000001", "b.json", [], 0)
    assert storage.names() == ["step-00000001"]
    assert storage.sizes("step-00000001") == {"a.bin": 7, "b.json": 0}
    assert storage.read("step-00000001", "a.bin") == b"0123456"
    out = bytearray(3)
    storage.read_into("step-00000001", "a.bin", 2, memoryview(out))
    assert out == b"234"
    with pytest.raises(StorageError, match="ends at byte 7"):
        storage.read_into("step-00000001", "a.bin", 5, memoryview(out))
    storage.remove_file("step-00000001", "b.json")
    storage.remove_file("step-00000001", "b.json")
    storage.remove("step-00000001", MANIFEST)
    assert storage.names() == []
    with pytest.raises(StorageError, match="cannot be read: No such file") as caught:
        storage.read("step-00000001", "a.bin")
    assert caught.value.fault is StorageFault.MISSING


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("c", "f", [b"old"], 3)

    def broken() -> Iterator[bytes]:
        yield b"ne"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.put("c", "f", broken(), 3)
    with pytest.raises(ValueError, match="2 bytes were given, 3 announced"):
        storage.put("c", "f", [b"ne"], 3)
    assert storage.read("c", "f") == b"old"
    assert storage.sizes("c") == {"f": 3}, "no temporary file is left"


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "..hidden", "/etc"])
def test_names_do_not_reach_out_of_their_place(tmp_path: Path, name: str) -> None:
    storage = LocalStorage(tmp_path / "here")
    for call in (
        lambda: storage.read(name, "passwd"),
        lambda: storage.read("c", name),
        lambda: storage.put("c", name, [b"x"], 1),
        lambda: storage.remove(name, MANIFEST),
        lambda: storage.remove_file("c", name),
    ):
        with pytest.raises(StorageError, match="is not a valid file name"):
            call()


def test_a_forged_manifest_does_not_reach_out_of_its_directory(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, {"w": np.arange(4, dtype=np.float32)})
    manifest = read_manifest(path)
    forged = [{**vars(shard), "file": "../" + shard.file} for shard in manifest.shards]
    (tmp_path / "shard-00000.bin").write_bytes((path / "shard-00000.bin").read_bytes())
    shards = tuple(type(manifest.shards[0])(**entry) for entry in forged)
    (path / MANIFEST).write_bytes(type(manifest)(**{**vars(manifest), "shards": shards}).to_bytes())
    assert newest_valid(tmp_path) is None


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, name = locate(tmp_path / "run" / "step-00000003")
    assert (storage.place(), name) == (str(tmp_path / "run"), "step-00000003")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "x")
    storage, name = locate("s3://bucket/some/where/step-00000003/")
    assert (storage.place(), name) == ("s3://bucket/some/where", "step-00000003")
    assert storage.place(name) == "s3://bucket/some/where/step-00000003"
    assert open_storage("s3://bucket").place() == "s3://bucket"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp://host/x", "cannot be kept at ftp://"),
        ("s3://", "needs a bucket"),
        ("s3:///path", "needs a bucket"),
        ("s3://key:secret@bucket/x", "needs a bucket and a path, and nothing else"),
        ("s3://bucket/x?endpoint=http://h", "needs a bucket and a path, and nothing else"),
    ],
)
def test_places_that_are_none(place: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_storage(place)
    assert "secret" not in caught.value.message + str(caught.value.hint)
    assert caught.value.hint


def test_credentials_come_from_the_environment_or_it_is_said_which_are_missing() -> None:
    for scheme, variable in (("s3", "AWS_ACCESS_KEY_ID"), ("gs", "GOOGLE_APPLICATION_"), ("az", "AZURE_STORAGE_")):
        with pytest.raises(UsageError, match=f"no credentials for {scheme}://") as caught:
            require_credentials(scheme, {"AWS_ACCESS_KEY_ID": "half", "AZURE_STORAGE_ACCOUNT_NAME": "half"})
        assert variable in str(caught.value.hint)
    require_credentials("s3", {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"})
    require_credentials("s3", {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "r"})


def test_every_cloud_opens_without_contacting_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert open_storage("az://container/path").place() == "az://container/path"
    key = '{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}'
    (tmp_path / "adc.json").write_text(key)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "adc.json"))
    assert open_storage("gs://bucket/path").place() == "gs://bucket/path"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(UsageError, match="gs://bucket/path cannot be used"):
        open_storage("gs://bucket/path")


@contextlib.contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[int]:
    """A port that answers every request with `status`."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (403, "AccessDenied", StorageFault.DENIED),
        (401, "InvalidAccessKeyId", StorageFault.DENIED),
        (404, "NoSuchBucket", StorageFault.MISSING),
        (507, "XMinioStorageFull", StorageFault.FULL),
        (503, "SlowDown", StorageFault.UNREACHABLE),
        (500, "InternalError", StorageFault.UNREACHABLE),
    ],
)
def test_what_a_server_says_is_told_apart(
    status: int, code: str, fault: StorageFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    with answering(status, f"<Error><Code>{code}</Code></Error>".encode()) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        storage = open_storage("s3://bucket/x", SHORT)
        assert isinstance(storage, BucketStorage)
        for call in (lambda: storage.put("c", "f", [b"x"], 1), storage.names, lambda: require_writable(storage)):
            with pytest.raises(StorageError) as caught:
                call()
            assert caught.value.fault is fault, caught.value.message
            assert caught.value.hint
            assert "topsecret" not in caught.value.message
            assert "\n" not in caught.value.message


def test_the_digits_of_a_time_or_a_port_are_no_status() -> None:
    said = "Generic S3 error: Error performing GET http://127.0.0.1:503/b in 507.24µs - Server returned non-2xx "
    assert bucket_fault(GenericError(said + "status code: 403 Forbidden: <Error/>")) is StorageFault.DENIED
    assert bucket_fault(GenericError(said + "status code: 507 Insufficient Storage")) is StorageFault.FULL


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with mounted_disk(tmp_path, "8m") as disk:
        yield disk


@pytest.mark.needs("mounts")
def test_a_full_disk_is_said_and_leaves_the_checkpoints_before(small_disk: Path) -> None:
    write_checkpoint(small_disk, 1, {"w": np.arange(10, dtype=np.float32)})
    storage = LocalStorage(small_disk)
    data = np.zeros(3 << 20, dtype=np.float32)
    interval = Interval("w", Kind.MASTER, Range(0, data.size), 0, "float32")
    with pytest.raises(StorageError, match="No space left on device") as caught:
        write_shard(storage, "step-00000002", 0, [interval], data.data, {})
    assert caught.value.fault is StorageFault.FULL
    assert "keep_last" in str(caught.value.hint)
    assert isinstance(caught.value, CheckpointError)
    abandon(storage, "step-00000002", 0)
    assert storage.sizes("step-00000002") == {}, "what was written makes room again"
    newest = newest_valid(storage)
    assert newest is not None
    assert newest.step == 1
    assert [found.problem is None for found in list_checkpoints(storage)] == [False, True]
    assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize > 7 << 20
