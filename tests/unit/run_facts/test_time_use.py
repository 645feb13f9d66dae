"""The ledger of both versions, and what the rules make of the shares."""

import pytest

from orchestrator.goodput.time_class import TimeClass
from orchestrator.run_facts.time_use import RECOVERING, time_use
from orchestrator.run_facts.why.diagnosis import diagnose
from tests.unit.run_facts.made import facts, step

pytestmark = pytest.mark.unit
VERSION_1 = {
    "elapsed_s": 100.0,
    "goodput": 0.6,
    "seconds": {"training": 60.0, "lost": 5.0, "recovering": 15.0, "evaluating": 20.0},
}
VERSION_2 = {
    "v": 2, "elapsed_s": 100.0, "reserved_s": 400.0, "goodput": 0.5, "ettr": 0.4, "cost": {"spent_usd": 1.5},
    "seconds": {"productive": 180.0, "waiting": 100.0, "recovery_rebuild": 60.0, "recomputed": 20.0, "unheard": 40.0},
}  # fmt: skip


def test_both_versions_have_the_same_shares() -> None:
    for ledger, productive, recovering in ((VERSION_1, 0.6, 0.2), (VERSION_2, 0.45, 0.2)):
        use = time_use(ledger)
        assert use is not None
        assert use.share_of(TimeClass.PRODUCTIVE) == pytest.approx(productive)
        assert use.share_of(*RECOVERING) == pytest.approx(recovering)
        assert sum(map(use.share, use.seconds)) == pytest.approx(1.0)
    assert (time_use(VERSION_2) or time_use({})).spent_usd == 1.5  # type: ignore[union-attr]


@pytest.mark.parametrize("ledger", [None, {}, {"elapsed_s": None}, {"elapsed_s": "1"}, {"elapsed_s": 0.0}])
def test_a_ledger_without_time_is_none(ledger: dict[str, object] | None) -> None:
    assert time_use(ledger) is None  # type: ignore[arg-type]


def test_rules_take_the_shares_of_worker_time() -> None:
    run = facts([step(number) for number in range(1, 51)], ledger=VERSION_2)
    assert [(each.name, each.share) for each in diagnose(run).found] == [
        ("waiting", pytest.approx(0.25)),
        ("recoveries", pytest.approx(0.2)),
    ]
    assert run.ledger_s(TimeClass.WAITING) == pytest.approx(25.0)
    former = facts([step(1)], ledger=VERSION_1)
    assert former.ledger_s(TimeClass.WAITING) is None
    assert former.ledger_s(TimeClass.EVALUATION) == pytest.approx(20.0)
