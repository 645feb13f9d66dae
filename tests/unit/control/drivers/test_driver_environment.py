"""What drivers get of the server's environment."""

import pytest

from orchestrator.control.drivers.driver_environment import driver_environment

pytestmark = pytest.mark.unit

OWN = {
    "PATH": "/bin",
    "LC_ALL": "C",
    "CONVOY_HOME": "/runs",
    "CONVOY_METRICS_TOKEN": "m",
    "CONVOY_WEBHOOK_SECRET": "s",
    "RAY_AUTH_TOKEN": "r",
    "HF_HOME": "/hf",
    "HF_TOKEN": "h",
    "AWS_SECRET_ACCESS_KEY": "a",
    "AWS_REGION": "eu-1",
    "DATABASE_URL": "d",
}


def test_secrets_of_the_server_stay_with_it() -> None:
    assert driver_environment(OWN).keys() == {
        "PATH", "LC_ALL", "CONVOY_HOME", "CONVOY_METRICS_TOKEN", "RAY_AUTH_TOKEN", "HF_HOME",
    }  # fmt: skip


def test_the_operator_lists_more() -> None:
    found = driver_environment(OWN, ["AWS_*", "HF_TOKEN"])
    assert found["AWS_SECRET_ACCESS_KEY"] == "a"
    assert found["HF_TOKEN"] == "h"
    assert "DATABASE_URL" not in found
