import json
import stat
from pathlib import Path

import pytest

from orchestrator.client.server_choice import (
    choose_server,
    normal_url,
    read_logins,
    remove_login,
    store_login,
)
from orchestrator.domain.errors import UsageError

pytestmark = pytest.mark.unit


def local(home: Path) -> None:
    folder = home / "server"
    folder.mkdir(parents=True)
    (folder / "address.json").write_text(json.dumps({"url": "http://127.0.0.1:7"}))
    (folder / "admin-token").write_text("convoy_local\n")


def test_the_order_in_which_a_server_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no server is known") as caught:
        choose_server(tmp_path, None, {})
    assert "convoy server start" in (caught.value.hint or "")
    local(tmp_path)
    here = choose_server(tmp_path, None, {})
    assert (here.url, here.secret, here.is_here) == ("http://127.0.0.1:7", "convoy_local", True)
    store_login(tmp_path, "https://far:1", "convoy_far", None)
    assert choose_server(tmp_path, None, {}).secret == "convoy_far"
    environ = {"CONVOY_SERVER": "http://other:2", "CONVOY_TOKEN": "convoy_env"}
    other = choose_server(tmp_path, None, environ)
    assert (other.url, other.secret, other.is_here) == ("http://other:2", "convoy_env", False)
    assert choose_server(tmp_path, "https://far:1", {"CONVOY_SERVER": "http://other:2"}).secret == "convoy_far"
    assert choose_server(tmp_path, "127.0.0.1:7", {}).secret == "convoy_local"


def test_logins_are_private_and_can_be_forgotten(tmp_path: Path) -> None:
    path = store_login(tmp_path, "https://far:1", "convoy_far", "/ca.pem")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_logins(tmp_path)["https://far:1"].ca_file == "/ca.pem"
    assert remove_login(tmp_path, "https://far:1")
    assert not remove_login(tmp_path, "https://far:1")
    with pytest.raises(UsageError, match="no server is known"):
        choose_server(tmp_path, None, {})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "servers.json").write_text('{"servers": {"http://x": 3}}')
    with pytest.raises(UsageError, match=r"servers\.json is damaged"):
        choose_server(tmp_path, None, {})


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("host:1", "http://host:1"),
        ("https://Host/", "https://host"),
        ("https://host/convoy/", "https://host/convoy"),
        ("http://[::1]:2", "http://[::1]:2"),
    ],
)
def test_addresses_have_one_form(given: str, url: str) -> None:
    assert normal_url(given) == url


@pytest.mark.parametrize(
    "given", ["ftp://host", "http://", "http://user:pass@host", "http://host:port", "http://h?x=1"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        normal_url(given)
