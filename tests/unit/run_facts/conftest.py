"""The recorded run of the commands' tests."""

from tests.unit.cli.conftest import recorded as recorded
