"""Charts of figures over the steps of a run: an SVG that is as wide as its place, labels in HTML around it. Pure.

The SVG is stretched, so it holds nothing but lines and areas; text keeps its size on every screen. The values are in
the page once more as JSON, for the script that shows those under the pointer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.json_values import JsonValue
from orchestrator.report.axis import Axis, axis, labels
from orchestrator.report.html_text import Html, data_block, element, joined
from orchestrator.run_facts.curve import Curve, CurvePoint

WIDTH, HEIGHT = 1000, 300
"""Of the drawing, in its own units."""
MOST_DRAWN = 400
"""Points of a line: more cannot be seen, and the file stays small."""


@dataclass(frozen=True)
class ChartLine:
    """One line."""

    name: str
    points: tuple[CurvePoint, ...]
    colour: int
    """Number of the page's colour, from 1."""
    dotted: bool = False
    """With a dot at each point: there are few of them."""
    band: bool = False
    """With an area from the lowest to the highest value of each point."""


@dataclass(frozen=True)
class LineChart:
    """A chart. `marks`: steps at which something happened, with what."""

    title: str
    series: tuple[ChartLine, ...]
    write: Callable[[float], str]
    """A value as text."""
    tick: Callable[[float], str] | None = None
    """A tick's label; None: the number."""
    unit: float = 1.0
    """Ticks are round in this unit."""
    from_zero: bool = False
    stacked: bool = False
    """Areas on top of each other, the first at the bottom. All series have the same steps."""
    marks: tuple[tuple[int, str], ...] = ()
    note: str = ""
    tall: bool = False
    last_step: int = field(default=0)
    """The end of the axis, if it is beyond the last point."""


def series(name: str, curve: Curve, colour: int, dotted: bool = False, band: bool = False) -> ChartLine:
    """A line of a curve, with at most `MOST_DRAWN` points."""
    return ChartLine(name, tuple(thinned(list(curve))), colour, dotted, band)


def thinned(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Neighbours become one point until there are few enough."""
    found = list(points)
    while len(found) > MOST_DRAWN:
        pairs = [found[index : index + 2] for index in range(0, len(found), 2)]
        found = [_merged(pair) for pair in pairs]
    return found


def _merged(pair: Sequence[CurvePoint]) -> CurvePoint:
    first = pair[0]
    merged = CurvePoint(first.first_step, first.last_step, first.count, first.total, first.low, first.high)
    for point in pair[1:]:
        merged.merge(point)
    return merged


def line_chart(chart: LineChart) -> Html:
    """The figure; empty if no series has a point."""
    drawn = [each for each in chart.series if each.points]
    if not drawn:
        return Html("")
    stacked = _stacked(drawn) if chart.stacked else None
    values = [value for rows in stacked for value in rows] if stacked else _values(drawn)
    y_axis = axis(values, from_zero=chart.from_zero or chart.stacked, unit=chart.unit)
    steps = [step for each in drawn for point in each.points for step in (point.first_step, point.last_step)]
    x_axis = axis([*steps, *([chart.last_step] if chart.last_step else [])], ticks=6, rounded=False)
    shapes = _areas(drawn, stacked, x_axis, y_axis) if stacked else _lines(drawn, x_axis, y_axis)
    drawing = element(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "preserveAspectRatio": "none", "role": "img",
         "aria-label": _described(chart, drawn)},
        _grid(y_axis), *shapes, *(_mark(step, x_axis) for step, _ in chart.marks),
    )  # fmt: skip
    plot = element(
        "div", {"class": "plot"}, _y_labels(y_axis, chart), drawing, _x_labels(x_axis),
        *(_dot(each, x_axis, y_axis) for each in drawn if each.dotted),
        element("div", {"class": "cross", "hidden": ""}), element("output", {"class": "tip", "hidden": ""}),
    )  # fmt: skip
    return element(
        "figure", {"class": "chart tall" if chart.tall else "chart", "tabindex": "0"},
        element("figcaption", None, element("h3", None, chart.title), _legend(drawn), _note(chart.note)),
        plot, data_block(_data(chart, drawn, x_axis)),
    )  # fmt: skip


def _values(drawn: Sequence[ChartLine]) -> list[float]:
    """All that the axis has to hold: the means, and of bands what is not an outlier."""
    means = [point.mean for each in drawn for point in each.points]
    low, high = min(means), max(means)
    room = (high - low) * 0.25
    bands = [value for each in drawn if each.band for point in each.points for value in (point.low, point.high)]
    return means + [min(max(value, low - room), high + room) for value in bands]


def _stacked(drawn: Sequence[ChartLine]) -> list[list[float]]:
    """Upper edges of the areas, from the bottom one to the top one."""
    edges: list[list[float]] = []
    below = [0.0] * len(drawn[0].points)
    for each in drawn:
        below = [under + point.mean for under, point in zip(below, each.points, strict=True)]
        edges.append(below)
    return edges


def _x(point: CurvePoint, x_axis: Axis) -> float:
    return x_axis.place((point.first_step + point.last_step) / 2) * WIDTH


def _y(value: float, y_axis: Axis) -> float:
    return (1.0 - y_axis.place(value)) * HEIGHT


def _path(places: Sequence[tuple[float, float]], closed: bool = False) -> str:
    written = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f"M{written}" + ("Z" if closed else "")


def _lines(drawn: Sequence[ChartLine], x_axis: Axis, y_axis: Axis) -> list[Html]:
    shapes = []
    for each in drawn:
        if each.band and any(point.high > point.low for point in each.points):
            upper = [(_x(point, x_axis), _y(point.high, y_axis)) for point in each.points]
            lower = [(_x(point, x_axis), _y(point.low, y_axis)) for point in reversed(each.points)]
            shapes.append(element("path", {"class": f"band c{each.colour}", "d": _path(upper + lower, closed=True)}))
        places = [(_x(point, x_axis), _y(point.mean, y_axis)) for point in each.points]
        shapes.append(element("path", {"class": f"line c{each.colour}", "d": _path(places)}))
    return shapes


def _areas(drawn: Sequence[ChartLine], edges: Sequence[Sequence[float]], x_axis: Axis, y_axis: Axis) -> list[Html]:
    shapes = []
    below: Sequence[float] = [0.0] * len(drawn[0].points)
    for each, upper in zip(drawn, edges, strict=True):
        xs = [_x(point, x_axis) for point in each.points]
        top = [(x, _y(value, y_axis)) for x, value in zip(xs, upper, strict=True)]
        bottom = [(x, _y(value, y_axis)) for x, value in zip(xs, below, strict=True)]
        shape = _path(top + bottom[::-1], closed=True)
        shapes.append(element("path", {"class": f"area c{each.colour}", "d": shape}))
        below = upper
    return shapes


def _grid(y_axis: Axis) -> Html:
    lines = [{"class": "grid", "x1": "0", "x2": str(WIDTH), "y1": f"{_y(tick, y_axis):.1f}",
              "y2": f"{_y(tick, y_axis):.1f}"} for tick in y_axis.ticks]  # fmt: skip
    return joined(element("line", each) for each in lines)


def _mark(step: int, x_axis: Axis) -> Html:
    x = f"{x_axis.place(step) * WIDTH:.1f}"
    return element("line", {"class": "mark", "x1": x, "x2": x, "y1": "0", "y2": str(HEIGHT)})


def _dot(each: ChartLine, x_axis: Axis, y_axis: Axis) -> Html:
    """Dots of a line, outside of the stretched drawing: they stay round."""
    places = [(x_axis.place((p.first_step + p.last_step) / 2), y_axis.place(p.mean)) for p in each.points[:60]]
    dots = (element("i", {"class": f"dot c{each.colour}", "style": f"left:{x:.2%};bottom:{y:.2%}"}) for x, y in places)
    return element("div", {"class": "dots", "aria-hidden": "true"}, *dots)


def _y_labels(y_axis: Axis, chart: LineChart) -> Html:
    written = labels(y_axis.ticks, chart.tick)
    spans = [element("span", {"style": f"bottom:{y_axis.place(tick):.2%}"}, label)
             for tick, label in zip(y_axis.ticks, written, strict=True)]  # fmt: skip
    return element("div", {"class": "ylabels", "aria-hidden": "true"}, *spans)


def _x_labels(x_axis: Axis) -> Html:
    ticks = [tick for tick in x_axis.ticks if tick == int(tick)]
    spans = [_x_label(x_axis.place(tick), f"{int(tick):,}") for tick in ticks]
    return element("div", {"class": "xlabels", "aria-hidden": "true"}, *spans, element("b", None, "step"))


def _x_label(place: float, label: str) -> Html:
    """Centred below its place, but not beyond the ends."""
    end = {"class": "first"} if place < 0.02 else {"class": "last"} if place > 0.97 else {}
    return element("span", {**end, "style": f"left:{place:.2%}"}, label)


def _legend(drawn: Sequence[ChartLine]) -> Html:
    if len(drawn) < 2:
        return Html("")
    items = [element("li", None, element("i", {"class": f"c{each.colour}"}), each.name) for each in drawn]
    return element("ul", {"class": "legend"}, *items)


def _note(note: str) -> Html:
    return element("p", {"class": "note"}, note) if note else Html("")


def _described(chart: LineChart, drawn: Sequence[ChartLine]) -> str:
    parts = [f"{each.name} from {chart.write(each.points[0].mean)} to {chart.write(each.points[-1].mean)}"
             for each in drawn]  # fmt: skip
    return f"{chart.title} over the steps: {', '.join(parts)}"


def _data(chart: LineChart, drawn: Sequence[ChartLine], x_axis: Axis) -> JsonValue:
    """What the script shows: for each series its steps, and its values as text."""
    return {
        "x": [x_axis.low, x_axis.high],
        "series": [
            {
                "name": each.name,
                "colour": each.colour,
                "steps": [[point.first_step, point.last_step] for point in each.points],
                "values": [chart.write(point.mean) for point in each.points],
            }
            for each in drawn
        ],
        "marks": [[step, what] for step, what in chart.marks],
    }
