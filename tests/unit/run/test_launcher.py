"""What worker processes are to run."""

import pytest

from orchestrator.run.launcher import GPU_CHECK, TRAIN_ENTRY, workload_of
from orchestrator.run.preparation import Workload
from orchestrator.spec.resources import ResourcesSpec
from tests.unit.train.builders import spec_with

pytestmark = pytest.mark.unit


def test_workers_on_a_gpu_try_it_and_do_not_warm_up_on_it() -> None:
    spec = spec_with(zero={"stage": 2})
    work = workload_of(spec, TRAIN_ENTRY)
    assert (work.imports_later, work.device_check) == (("orchestrator.train.engine.warmup:stage_2",), None)
    on_gpu = workload_of(spec.model_copy(update={"resources": ResourcesSpec(gpus_per_worker=1)}), TRAIN_ENTRY)
    assert (on_gpu.imports, on_gpu.imports_later, on_gpu.device_check) == (work.imports, (), GPU_CHECK)


def test_another_entry_point_imports_what_it_needs_itself() -> None:
    assert workload_of(spec_with(), "tests.entries:train") == Workload("tests.entries:train")
