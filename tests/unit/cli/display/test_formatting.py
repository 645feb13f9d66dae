import pytest

from orchestrator.cli.display import formatting

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (3 * 2**40, "3.0 TiB")],
)
def test_size(value: float | None, text: str) -> None:
    assert formatting.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (float("inf"), "-"), (0.123, "0.12 s"), (12.34, "12.3 s"), (65, "1:05"), (3661, "1:01:01"),
     (90_061, "1d 1:01:01")],
)  # fmt: skip
def test_duration(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_a_falling_loss_falls_in_the_sparkline() -> None:
    line = formatting.sparkline([9.0, 7.0, 5.0, 3.0, 1.0])
    assert line == "█▆▄▃▁" or (line[0] == "█" and line[-1] == "▁" and len(line) == 5)
    assert len(formatting.sparkline([float(i) for i in range(1000)], width=60)) == 60
    assert formatting.sparkline([float("nan"), 1.0, 1.0]) == "▁▁"
    assert formatting.sparkline([]) == ""


def test_change() -> None:
    assert formatting.change(8.0, 4.0) == "-50.0%"
    assert formatting.change(None, 4.0) == "-"


def test_nothing_a_model_writes_steers_the_terminal() -> None:
    assert formatting.printable("a\x1b]0;evil\x07\n\tö") == "a\ufffd]0;evil\ufffd\n\tö"
