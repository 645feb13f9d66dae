from pathlib import Path

import pytest

from orchestrator.domain.run_layout import RunLayout

pytestmark = pytest.mark.unit


def test_checkpoints_sort_by_step_as_text() -> None:
    layout = RunLayout(Path("/runs/tiny-1"))
    paths = [layout.checkpoint(step) for step in (5, 50, 100_000)]
    assert sorted(paths) == paths
    assert layout.run_id == "tiny-1"


def test_every_path_of_a_run_is_its_own_and_inside_it() -> None:
    layout = RunLayout(Path("/runs/tiny-1"))
    names = [name for name in dir(RunLayout) if isinstance(getattr(RunLayout, name), property) and name != "run_id"]
    paths = [getattr(layout, name) for name in names] + [layout.log(0), layout.log(10), layout.checkpoint(1)]
    assert len(set(paths)) == len(paths) > 8
    assert all(path.is_relative_to(layout.root) for path in paths)
