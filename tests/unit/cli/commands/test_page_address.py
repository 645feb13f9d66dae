import pytest

from orchestrator.cli.commands.server_command import page_address

pytestmark = pytest.mark.unit


def test_the_token_is_in_the_address_for_a_person_alone() -> None:
    url = "http://127.0.0.1:8470"
    assert page_address(url, "cvy_x", for_person=True) == f"{url}/#token=cvy_x"
    for shown in (page_address(url, "cvy_x", for_person=False), page_address(url, None, for_person=True)):
        assert "cvy_x" not in shown
        assert shown.startswith(f"{url}/ ")
