"""Grants: what a worker may keep, and which places are left."""

import pytest

from orchestrator.domain.queue.grant import Grant, GrantAnswer, surplus, vacant

pytestmark = pytest.mark.unit


def test_the_first_workers_of_a_node_keep_their_places() -> None:
    assert surplus({"a": 1, "b": 1}, ["a", "b", "a", "c"]) == [2, 3]
    assert surplus({"a": 3}, ["a", "a"]) == []


def test_vacant_places_are_those_that_nobody_has_on_nodes_that_live() -> None:
    places = {"a": 2, "b": 1, "c": 1}
    assert vacant(places, ["a"], {"a", "b"}) == ["a", "b"]
    assert vacant(places, ["a", "a", "a", "b"], {"a", "b", "c"}) == ["c"]


def test_what_is_no_grant_is_none() -> None:
    assert Grant.from_json({"number": 3, "places": {"a": 1}}) == Grant(3, {"a": 1})
    assert Grant.from_json({"number": 3, "places": {"a": "x"}}) is None
    assert GrantAnswer.from_json({"number": 2, "places": {}}) == GrantAnswer(2, {})
    assert GrantAnswer.from_json(None) is None
