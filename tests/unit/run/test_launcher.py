"""What the composition root asks of workers."""

import pytest

from orchestrator.run.launcher import GPU_CHECK, _warm
from orchestrator.spec.resources import ResourcesSpec
from tests.unit.train.builders import spec_with

pytestmark = pytest.mark.unit


def test_who_trains_on_a_gpu_tries_it_and_rehearses_nothing_on_it() -> None:
    spec = spec_with(zero={"stage": 2})
    base, later, check = _warm(spec)
    assert (later, check) == (("orchestrator.train.engine.warmup:stage_2",), None)
    on_gpu = spec.model_copy(update={"resources": ResourcesSpec(gpus_per_worker=1)})
    assert _warm(on_gpu) == (base, (), GPU_CHECK)
