"""Page tables of shared memory: full for whoever writes it, empty for whoever may only read a part of it."""

import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.memory.cells import Cell, CellSize, address_of
from orchestrator.checkpoint.memory.peers import descriptor_path

pytestmark = pytest.mark.unit

SIZE = CellSize(payload_bytes=4 << 20, state_bytes=1000)


def resident_bytes(cell: Cell) -> int:
    """Of this mapping, the pages that are in its page tables."""
    start = f"{address_of(cell.memory):x}-"
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(line.startswith(start) for line in lines)
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def test_a_writer_meets_no_page_fault_and_a_reader_pays_for_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    usual = mmap.mmap

    def noting(*arguments: Any, **options: Any) -> mmap.mmap:
        flags.append(options["flags"])
        return usual(*arguments, **options)

    monkeypatch.setattr(mmap, "mmap", noting)
    written = Cell.create(SIZE, "test")
    path = descriptor_path(os.getpid(), written.descriptor)
    again, looked_at = Cell.attach(path, SIZE), Cell.attach(path, SIZE, writes=False)
    assert [resident_bytes(cell) for cell in (written, again)] == [SIZE.total_bytes] * 2
    assert resident_bytes(looked_at) < SIZE.total_bytes // 8
    assert looked_at.payload(1)[-1] == 0
    assert looked_at.serial == written.serial
    # MAP_POPULATE would keep all other threads of the process, heartbeats among them, from running meanwhile.
    assert not any(flag & mmap.MAP_POPULATE for flag in flags)
    for cell in (written, again, looked_at):
        cell.close()
