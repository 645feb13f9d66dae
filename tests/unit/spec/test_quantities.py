"""Amounts of memory."""

import pytest

from orchestrator.spec.quantities import format_bytes, parse_bytes

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 << 30),
        ("500MB", 500_000_000),
        ("1.5 GiB", 3 << 29),
        ("1kb", 1000),
        ("2tib", 2 << 40),
        ("123", 123),
        ("7B", 7),
        (42, 42),
    ],
)
def test_amounts_are_read(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "4 gigs", "-1GB", "1e9", "0", "0.1B", "4Gi", "٤GB", 0, -3])
def test_what_is_no_amount_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"amount of memory|less than one byte"):
        parse_bytes(text)


def test_amounts_are_shown_in_the_largest_fitting_unit() -> None:
    assert [format_bytes(n) for n in (5, 1536, 3 << 29, 1 << 62)] == ["5 B", "1.5 KiB", "1.5 GiB", "4096.0 PiB"]
