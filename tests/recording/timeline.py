"""From a recording to frames: what each terminal showed when, with the dull parts sped up. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.recording.terminal import Row, Screen


@dataclass(frozen=True)
class Output:
    """What a program wrote to a pane at a time, in seconds since the recording began."""

    time_s: float
    pane: int
    text: str


@dataclass(frozen=True)
class Pane:
    """A terminal in the picture."""

    title: str
    columns: int
    rows: int


@dataclass(frozen=True)
class Segment:
    """Part of the recording, until `until_s`, that plays in `plays_s`."""

    until_s: float
    plays_s: float


@dataclass(frozen=True)
class Frame:
    """What is shown from `at_s` of the playback on. `clock_s` is the time in the recording."""

    at_s: float
    clock_s: float
    speed: float
    panes: tuple[tuple[Row, ...], ...]


def segments(killed_s: float, recovered_s: float, trained_s: float, ended_s: float) -> list[Segment]:
    """The time around the recovery as it was, the rest in a few seconds. `trained_s`: end of the training command."""
    calm_s = max(0.0, killed_s - 4.0)
    again_s = min(trained_s, recovered_s + 5.0)
    return [
        Segment(calm_s, min(calm_s, 5.0)),
        Segment(again_s, again_s - calm_s),
        Segment(trained_s, min(trained_s - again_s, 5.0)),
        Segment(ended_s, min(ended_s - trained_s, 1.5)),
    ]


def frames(
    outputs: Sequence[Output], panes: Sequence[Pane], parts: Sequence[Segment], interval_s: float
) -> list[Frame]:
    """A frame for each `interval_s` of the playback, and the last moment."""
    screens = [Screen(pane.columns, pane.rows) for pane in panes]
    shown: list[Frame] = []
    position, began_s, at_s = 0, 0.0, 0.0
    for part in parts:
        length_s = part.until_s - began_s
        if part.plays_s <= 0 or length_s <= 0:
            continue
        speed, count = length_s / part.plays_s, max(1, round(part.plays_s / interval_s))
        for index in range(1, count + 1):
            clock_s = began_s + length_s * index / count
            while position < len(outputs) and outputs[position].time_s <= clock_s:
                screens[outputs[position].pane].feed(outputs[position].text)
                position += 1
            shown.append(Frame(at_s, clock_s, speed, tuple(screen.rows() for screen in screens)))
            at_s += part.plays_s / count
        began_s = part.until_s
    return shown
