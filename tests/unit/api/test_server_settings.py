from pathlib import Path

import pytest

from orchestrator.api.server_settings import ServerConfig, read_settings
from orchestrator.api.systemd_unit import unit_path, unit_text
from orchestrator.domain.errors import UsageError
from orchestrator.spec.spec_errors import SpecError

pytestmark = pytest.mark.unit


def test_flags_go_before_variables_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "listen: 127.0.0.1:1\nnodes: 2\nstorage: /shared\nqueues: {research: {weight: 2, quota: {GPU: 8}}}\n"
    )
    environ = {"CONVOY_SERVER_LISTEN": "127.0.0.1:2", "CONVOY_SERVER_NODES": "3", "CONVOY_SERVER_PATHS": "/a:/b"}
    settings = read_settings(tmp_path, file, environ, {"listen": "127.0.0.1:3", "nodes": None})
    config = settings.config
    assert (settings.port, config.nodes, config.storage, config.paths) == (3, 3, "/shared", ["/a", "/b"])
    assert config.queues["research"].quota == {"GPU": 8}
    assert settings.roots == (Path("/a"), Path("/b"))


def test_the_file_of_the_home_is_read_and_its_mistakes_have_places(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    assert read_settings(tmp_path, None, {}, {}).config == ServerConfig()
    (folder / "config.yaml").write_text("nodes: 2\nlisten: 127.0.0.1:1\nqueues:\n  a: {wieght: 2}\n")
    with pytest.raises(SpecError) as caught:
        read_settings(tmp_path, None, {}, {})
    (problem,) = caught.value.problems
    assert (problem.place.line, problem.place.column) == (4, 7)
    assert "wieght" in problem.message
    with pytest.raises(SpecError, match="no such file"):
        read_settings(tmp_path, tmp_path / "none.yaml", {}, {})


@pytest.mark.parametrize("listen", ["0.0.0.0:8470", "[::]:8470", "10.0.0.1:1", "example.com:80"])
def test_beyond_loopback_it_needs_tls_or_a_proxy(tmp_path: Path, listen: str) -> None:
    with pytest.raises(UsageError, match="other machines") as caught:
        read_settings(tmp_path, None, {}, {"listen": listen})
    assert "--behind-proxy" in (caught.value.hint or "")
    proxied = read_settings(tmp_path, None, {}, {"listen": listen, "behind_proxy": True})
    assert proxied.roots == (), "others must not read this machine's files"
    (tmp_path / "c.pem").touch()
    encrypted = {"listen": listen, "tls_certificate": str(tmp_path / "c.pem"), "tls_key": str(tmp_path / "c.pem")}
    assert read_settings(tmp_path, None, {}, encrypted).url(1).startswith("https://")


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ({"listen": "8470"}, {}, "HOST:PORT"),
        ({"listen": "127.0.0.1:99999"}, {}, "HOST:PORT"),
        ({"tls_key": "/k"}, {}, "both"),
        ({"tls_key": "/no/k", "tls_certificate": "/no/c"}, {}, "/no/c"),
        ({}, {"CONVOY_SERVER_NODES": "many"}, "CONVOY_SERVER_NODES"),
        ({}, {"CONVOY_SERVER_BEHIND_PROXY": "perhaps"}, "behind_proxy"),
        ({"nodes": 0}, {}, "nodes"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, flags: dict[str, str], environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings(tmp_path, None, environ, flags)
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_the_unit_starts_the_server_with_the_same_settings(tmp_path: Path) -> None:
    home = tmp_path / "my runs"
    settings = read_settings(home, None, {}, {"listen": "127.0.0.1:9", "nodes": 4, "paths": ["/data"]})
    text = unit_text(settings, None, "/opt/venv/bin/python", for_user=True)
    assert f'--home "{home}" --listen 127.0.0.1:9 --nodes 4 --path /data\n' in text
    assert "KillMode=process" in text
    assert "User=" not in text
    assert unit_path(True, Path("/home/ann")) == Path("/home/ann/.config/systemd/user/convoy.service")
