"""What errors of CUDA, NCCL, gloo and the allocators mean."""

import pytest

from orchestrator.domain.engine_errors import MAX_CHARACTERS, Cause, find_cause
from tests.unit.domain.engine_error_texts import TEXTS

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("text", "cause"), TEXTS, ids=[text[:60] for text, _ in TEXTS])
def test_each_text_leads_to_its_cause(text: str, cause: Cause | None) -> None:
    assert find_cause(text) is cause


def test_every_cause_has_texts() -> None:
    assert {cause for _, cause in TEXTS} == {*Cause, None}
    assert len(TEXTS) >= 50


def test_the_context_is_lost_after_an_error_of_the_device_alone() -> None:
    assert [cause for cause in Cause if cause.ends_process] == [Cause.DEVICE, Cause.ASSERTION]


def test_only_the_beginning_of_an_error_is_read() -> None:
    assert find_cause("x" * MAX_CHARACTERS + "CUDA out of memory") is None
