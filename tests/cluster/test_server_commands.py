"""`convoy server` as a person uses it: started, used from the command line, killed, started again, ended."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.served_queue import JOB

pytestmark = pytest.mark.cluster
Convoy = Callable[..., subprocess.CompletedProcess[str]]
LIMIT_S = 150
START = ("server", "start", "--listen", "127.0.0.1:0", "--json")


@pytest.fixture
def convoy(tmp_path: Path) -> Convoy:
    """Run a command for one home."""
    (tmp_path / "jobs").mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator", *arguments]
        environment = {**os.environ, "CONVOY_HOME": str(tmp_path / "runs")}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, cwd=tmp_path / "jobs"
        )

    return run


def certificate(directory: Path) -> list[str]:
    """Options with a new certificate for loopback."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "convoy")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return ["--tls-certificate", str(directory / "cert.pem"), "--tls-key", str(directory / "key.pem")]


def test_a_server_is_started_used_killed_and_ended(convoy: Convoy, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "text.txt").write_text("to be or not to be, that is the question\n" * 40)
    (tmp_path / "jobs" / "job.yaml").write_text(JOB.replace("FILES", "text.txt").replace("workers: 2", "workers: 1"))
    folder = tmp_path / "runs" / "server"
    before = convoy("ps")
    assert (before.returncode, "convoy server start" in before.stderr) == (2, True)
    try:
        # With the whole environment, as the fork server of all tests has it.
        started = convoy(*START, "--cpus-per-node", "1", "--variable", "*")
        assert started.returncode == 0, started.stderr
        first = json.loads(started.stdout)
        assert first["acting"]
        assert stat.S_IMODE((folder / "admin-token").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        again = convoy("server", "start")
        assert (again.returncode, "runs already" in again.stderr) == (2, True)

        waited = convoy("submit", "job.yaml", "--wait", "--json")
        assert waited.returncode == 0, waited.stdout + waited.stderr
        (run,) = json.loads(waited.stdout)["runs"]
        assert (run["state"], run["step"], run["total_steps"]) == ("succeeded", 5, 5)
        assert "uploading  text.txt" in waited.stderr
        assert "step 5 of 5" in convoy("status", "tiny").stdout
        assert "succeeded" in convoy("events", "tiny").stdout
        assert "goodput" in convoy("goodput", "tiny", "--server", first["url"]).stdout

        os.kill(first["pid"], signal.SIGKILL)
        psutil.wait_procs([psutil.Process(first["pid"])] if psutil.pid_exists(first["pid"]) else [], 10)
        gone = convoy("ps")
        assert (gone.returncode, "it has ended" in gone.stderr) == (1, True)
        restarted = convoy(*START, *certificate(tmp_path))
        second = json.loads(restarted.stdout)
        assert (second["server_id"], second["cluster"]) == (first["server_id"], first["cluster"])
        assert second["url"].startswith("https://")
        assert [each["id"] for each in json.loads(convoy("ps", "--json").stdout)] == [run["id"]]
        assert len(json.loads(convoy("token", "list", "--json").stdout)) == 1
    finally:
        ended = convoy("server", "stop", "--cluster")
    assert ended.returncode == 0, ended.stderr
    assert convoy("server", "status").returncode == 2
    log = (folder / "server.log").read_text()
    assert (folder / "admin-token").read_text().strip() not in log
    assert "Traceback" not in log


def test_settings_that_would_expose_it_or_are_wrong_start_nothing(convoy: Convoy, tmp_path: Path) -> None:
    exposed = convoy("server", "start", "--listen", "0.0.0.0:0")
    assert (exposed.returncode, "other machines" in exposed.stderr) == (2, True)
    folder = tmp_path / "runs" / "server"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("listen: 127.0.0.1:0\nnodez: 2\n")
    wrong = convoy("server", "start")
    assert wrong.returncode == 2
    assert f"{folder}/config.yaml:2:1" in wrong.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml"]
