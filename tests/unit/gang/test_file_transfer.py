"""Files between hosts: the server's fence, and copies that are whole or not there."""

import os
import zlib
from pathlib import Path

import pytest

from orchestrator.domain.policy.hang import Phase
from orchestrator.gang import file_transfer as module
from orchestrator.gang.agent.ray_session import Assignment, RaySession
from orchestrator.gang.agent.report_queue import Heartbeat, ReportQueue
from orchestrator.gang.file_transfer import Chunk, Files, FileServer, write_marker

pytestmark = pytest.mark.unit


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1000)


def remote(run_dir: Path, server: FileServer) -> Files:
    marker, word = write_marker(run_dir)
    return Files(server, str(marker), word, run_dir.parent / "cache", {"CONVOY_FILE_TRANSPORT": "remote"})


def server_of(run_dir: Path) -> FileServer:
    return FileServer((str(run_dir),), str(run_dir))


def test_a_shared_file_system_is_recognised(run_dir: Path) -> None:
    marker, word = write_marker(run_dir)
    server = server_of(run_dir)
    files = Files(server, str(marker), word, run_dir.parent / "cache", {})
    assert files.shared
    assert files.fetch(str(run_dir)) == run_dir
    assert not Files(server, str(marker), "another word", run_dir.parent / "cache", {}).shared
    assert not Files(server, str(run_dir / "nothing"), word, run_dir.parent / "cache", {}).shared
    with pytest.raises(FileNotFoundError):
        files.fetch(str(run_dir / "nothing"))


def test_directories_and_files_are_copied_once(run_dir: Path) -> None:
    data = {"a.bin": os.urandom(3500), "sub/b.bin": os.urandom(1000), "empty": b""}
    for name, content in data.items():
        (run_dir / name).write_bytes(content)
    files = remote(run_dir, server_of(run_dir))
    local = files.fetch(str(run_dir))
    assert local != run_dir
    assert {name: (local / name).read_bytes() for name in data} == data
    before = (local / "a.bin").stat().st_ino
    assert files.fetch(str(run_dir / "a.bin")).stat().st_ino == before
    (run_dir / "a.bin").write_bytes(b"changed")
    assert files.fetch(str(run_dir / "a.bin")).read_bytes() == b"changed"
    with pytest.raises(FileNotFoundError):
        files.fetch(str(run_dir / "nothing"))


def test_a_stored_file_is_whole(run_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for size in (0, 1, 1000, 2500):
        source.write_bytes(os.urandom(size))
        remote(run_dir, server_of(run_dir)).store(source, str(run_dir / "new" / f"{size}.bin"))
        assert (run_dir / "new" / f"{size}.bin").read_bytes() == source.read_bytes()
    assert {path.name for path in (run_dir / "new").iterdir()} == {"0.bin", "1.bin", "1000.bin", "2500.bin"}


def test_storing_in_place_does_nothing(run_dir: Path) -> None:
    marker, word = write_marker(run_dir)
    (run_dir / "x").write_text("x")
    inode = (run_dir / "x").stat().st_ino
    Files(server_of(run_dir), str(marker), word, run_dir, {}).store(run_dir / "x", str(run_dir / "x"))
    assert (run_dir / "x").stat().st_ino == inode


def test_nothing_outside_the_roots_is_touched(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (run_dir / "link").symlink_to(tmp_path / "secret")
    server = server_of(run_dir)
    for path in (tmp_path / "secret", run_dir / ".." / "secret", run_dir / "link", Path(f"{run_dir}-other/x")):
        with pytest.raises(PermissionError):
            server.listing(str(path))
        with pytest.raises(PermissionError):
            server.read(str(path), 0, 0)
        with pytest.raises(PermissionError):
            server.write(str(path), "token", 0, b"x")
    with pytest.raises(PermissionError):
        server.write(str(run_dir / "x"), "../../token", 0, b"x")
    assert (tmp_path / "secret").read_text() == "secret"
    reader = FileServer((str(run_dir), str(tmp_path / "data")), str(run_dir))
    with pytest.raises(PermissionError):
        reader.write(str(tmp_path / "data" / "x"), "token", 0, b"x")


class Unreliable(FileServer):
    """Damages the nth chunk, or breaks off there."""

    def __init__(self, run_dir: Path, at: int, breaks: bool) -> None:
        super().__init__((str(run_dir),), str(run_dir))
        self.reads, self.at, self.breaks = 0, at, breaks

    def read(self, path: str, offset: int, crc: int) -> Chunk:
        self.reads += 1
        chunk = super().read(path, offset, crc)
        if self.reads != self.at:
            return chunk
        if self.breaks:
            raise ConnectionError("gone")
        return Chunk(bytes([chunk.data[0] ^ 1]) + chunk.data[1:], chunk.crc)


def test_a_damaged_chunk_is_fetched_again(run_dir: Path) -> None:
    (run_dir / "a").write_bytes(os.urandom(3500))
    assert (
        remote(run_dir, Unreliable(run_dir, 2, False)).fetch(str(run_dir / "a")).read_bytes()
        == (run_dir / "a").read_bytes()
    )


def test_a_broken_copy_goes_on_where_it_was(run_dir: Path) -> None:
    (run_dir / "a").write_bytes(os.urandom(3500))
    files = remote(run_dir, Unreliable(run_dir, 3, True))
    with pytest.raises(ConnectionError):
        files.fetch(str(run_dir / "a"))
    server = Unreliable(run_dir, -1, False)
    files = remote(run_dir, server)
    assert files.fetch(str(run_dir / "a")).read_bytes() == (run_dir / "a").read_bytes()
    assert server.reads == 3  # the last two chunks and the end; what was there before was compared, and did not travel


def test_a_file_that_arrives_short_is_not_committed(run_dir: Path) -> None:
    server = server_of(run_dir)
    server.write(str(run_dir / "x"), "t", 0, b"abc")
    with pytest.raises(OSError, match="3 bytes arrived, 4 were sent"):
        server.commit(str(run_dir / "x"), "t", 4)
    assert not (run_dir / "x").exists()


def test_a_copy_that_was_begun_is_compared_before_it_is_continued(run_dir: Path) -> None:
    (run_dir / "a").write_bytes(os.urandom(3500))
    files = remote(run_dir, Unreliable(run_dir, 3, True))
    with pytest.raises(ConnectionError):
        files.fetch(str(run_dir / "a"))
    (partial,) = (run_dir.parent / "cache").rglob("*.partial")
    partial.write_bytes(os.urandom(partial.stat().st_size))
    server = Unreliable(run_dir, -1, False)
    assert remote(run_dir, server).fetch(str(run_dir / "a")).read_bytes() == (run_dir / "a").read_bytes()
    assert server.reads == 5  # all of it


def test_a_checksum_costs_the_server_a_bounded_read_and_no_transfer(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKED_BYTES", 1500)
    data = os.urandom(4000)
    (run_dir / "a").write_bytes(data)
    server = server_of(run_dir)
    assert server.checksum(str(run_dir / "a"), 0, 9999, 0) == (1500, zlib.crc32(data[:1500]))
    assert server.checksum(str(run_dir / "a"), 1500, 2000, zlib.crc32(data[:1500])) == (2000, zlib.crc32(data[:2000]))
    assert server.checksum(str(run_dir / "a"), 4000, 9999, 7) == (4000, 7)
    with pytest.raises(PermissionError):
        server.checksum("/etc/passwd", 0, 1, 0)


class Changing(FileServer):
    """The file is replaced while its second chunk is read, `times` times."""

    def __init__(self, run_dir: Path, times: int) -> None:
        super().__init__((str(run_dir),), str(run_dir))
        self.times = times

    def read(self, path: str, offset: int, crc: int) -> Chunk:
        if offset == 1000 and self.times:
            self.times -= 1
            stat = Path(path).stat()
            Path(path).write_bytes(os.urandom(3500))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # whatever the clock's resolution
        return super().read(path, offset, crc)


def test_a_file_that_changes_meanwhile_is_copied_again(run_dir: Path) -> None:
    (run_dir / "a").write_bytes(os.urandom(3500))
    assert remote(run_dir, Changing(run_dir, 1)).fetch(str(run_dir / "a")).read_bytes() == (run_dir / "a").read_bytes()
    (run_dir / "b").write_bytes(os.urandom(3500))
    with pytest.raises(OSError, match="it changed"):
        remote(run_dir, Changing(run_dir, 9)).fetch(str(run_dir / "b"))


class Damaging(FileServer):
    """Receives something else than was sent, `times` times."""

    def __init__(self, run_dir: Path, times: int) -> None:
        super().__init__((str(run_dir),), str(run_dir))
        self.times = times

    def write(self, path: str, token: str, offset: int, data: bytes) -> int:
        if offset == 1000 and self.times:
            self.times -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        return super().write(path, token, offset, data)


def test_a_chunk_that_arrives_damaged_is_sent_again(run_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3500))
    remote(run_dir, Damaging(run_dir, 2)).store(source, str(run_dir / "a"))
    assert (run_dir / "a").read_bytes() == source.read_bytes()
    with pytest.raises(OSError, match="arrived damaged"):
        remote(run_dir, Damaging(run_dir, 3)).store(source, str(run_dir / "b"))
    assert not (run_dir / "b").exists()


@pytest.mark.parametrize("shared", [True, False])
def test_a_copy_is_progress_chunk_by_chunk(run_dir: Path, tmp_path: Path, shared: bool) -> None:
    """The heartbeat of a worker changes with each chunk. Its beat, which ranks are compared by, stays what it is."""
    (run_dir / "a").write_bytes(os.urandom(3500))
    marker, word = write_marker(run_dir)
    seen: list[Heartbeat] = []

    class Slow(FileServer):
        def read(self, path: str, offset: int, crc: int) -> Chunk:
            seen.append(worker.heartbeat)
            return super().read(path, offset, crc)

        def write(self, path: str, token: str, offset: int, data: bytes) -> int:
            seen.append(worker.heartbeat)
            return super().write(path, token, offset, data)

    env = {} if shared else {"CONVOY_FILE_TRANSPORT": "remote"}
    files = Files(Slow((str(run_dir),), str(run_dir)), str(marker), word, tmp_path / "cache", env)
    worker = RaySession(Assignment(0, 1, 0, "127.0.0.1"), ReportQueue(), files)
    worker.beat(0, Phase.RESTORE)
    before = worker.heartbeat
    local = worker.fetch(str(run_dir / "a"))
    worker.store(local, str(run_dir / "b"))
    assert (run_dir / "b").read_bytes() == (run_dir / "a").read_bytes()
    # Four chunks: stored, and in the other case fetched before.
    assert worker.heartbeat.progress - before.progress == (4 if shared else 8)
    assert {(heartbeat.step, heartbeat.beat, heartbeat.phase) for heartbeat in [*seen, worker.heartbeat]} == {
        (0, 1, Phase.RESTORE)
    }
    counts = [heartbeat.progress for heartbeat in seen]
    assert counts == sorted(counts)
    assert len(set(counts)) == (0 if shared else 8)


@pytest.mark.parametrize("shared", [True, False])
def test_a_directory_is_moved_into_place_on_the_drivers_side(run_dir: Path, shared: bool) -> None:
    files = remote(run_dir, server_of(run_dir))
    files.shared = shared
    for content in (b"old", b"new"):
        local = run_dir.parent / "written"
        local.write_bytes(content)
        files.store(local, str(run_dir / "work" / "file"))
        files.move_into_place(str(run_dir / "work"), str(run_dir / "final"))
        assert (run_dir / "final" / "file").read_bytes() == content
        assert not (run_dir / "work").exists()


def test_nothing_is_moved_out_of_or_into_other_directories(run_dir: Path) -> None:
    server = server_of(run_dir)
    outside = run_dir.parent / "outside"
    outside.mkdir()
    for path, final in (
        (outside, run_dir / "x"),
        (run_dir / "sub", outside / "x"),
        (run_dir / "sub", run_dir / ".." / "x"),
    ):
        with pytest.raises(PermissionError):
            server.move_into_place(str(path), str(final))
    assert (run_dir / "sub").is_dir()
