"""Who keeps a local cluster, and where it is."""

import os
from pathlib import Path

import pytest

from orchestrator.clusters.ray.local.keeper_files import KeeperFiles, KeptCluster, KeptNodes

pytestmark = pytest.mark.unit

KEPT = KeptNodes(2, {"CPU": 4.0}, ("0", "1"), ("numpy",))


def test_there_is_one_keeper_as_long_as_the_lock_is_held(tmp_path: Path) -> None:
    files = KeeperFiles(tmp_path / "cluster")
    assert files.keeper() is None
    lock = files.take()
    assert lock is not None
    assert files.take() is None
    assert files.keeper() == os.getpid()
    os.close(lock)
    assert files.keeper() is None


def test_a_cluster_is_there_only_while_its_keeper_is(tmp_path: Path) -> None:
    files = KeeperFiles(tmp_path)
    lock = files.take()
    assert lock is not None
    assert files.cluster() is None
    files.announce(KeptCluster("127.0.0.1:7", os.getpid(), KEPT))
    assert files.cluster() == KeptCluster("127.0.0.1:7", os.getpid(), KEPT)
    files.announce(KeptCluster("127.0.0.1:7", os.getpid() + 1, KEPT))
    assert files.cluster() is None, "of an earlier keeper that was killed"
    files.announce(KeptCluster("127.0.0.1:7", os.getpid(), KEPT))
    os.close(lock)
    assert files.cluster() is None
