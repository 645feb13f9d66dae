"""An animated SVG of frames: CSS keyframes only, no scripts, nothing loaded from elsewhere.

Each row of text is drawn once for each time it is shown unchanged, and is visible for just that time. The static state,
and the one for `prefers-reduced-motion`, is the last frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar
from xml.sax.saxutils import escape

from tests.recording.terminal import Row, Run
from tests.recording.timeline import Frame, Pane

FONT_PX = 13
CHARACTER_PX = 7.83
"""0.602 em: what Menlo and DejaVu Sans Mono have. Other fonts are stretched to it."""
LINE_PX = 17
BAR_PX = 30
"""Height of a pane's title bar."""
MARGIN_PX = 14
GAP_PX = 10
STYLE = f"""\
text{{font:{FONT_PX}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#c9d1d9}}
.t{{fill:#8b949e}}.b{{font-weight:bold}}.d{{fill-opacity:.55}}
.s{{visibility:hidden;animation:%.2fs step-end infinite}}.z{{visibility:visible}}
@media (prefers-reduced-motion:reduce){{.s{{animation:none}}}}
"""
# The order matters: `animation` above resets the names that these rules set.
T = TypeVar("T")
Span = tuple[int, int]
"""First and last frame."""


@dataclass
class _Timing:
    """Keyframes by span. Mutable: `group` adds what is missing."""

    frames: Sequence[Frame]
    duration_s: float
    names: dict[Span, str] = field(default_factory=dict)

    def group(self, span: Span, content: str) -> str:
        """`content`, visible during `span` alone."""
        first, last = span
        if first == 0 and last == len(self.frames) - 1:
            return content
        name = self.names.setdefault(span, f"k{len(self.names)}")
        end = " z" if last == len(self.frames) - 1 else ""
        return f'<g class="s {name}{end}">{content}</g>'

    def rules(self) -> Iterator[str]:
        """CSS for all that was grouped."""
        for (first, last), name in self.names.items():
            steps = [f"{self._percent(first)}{{visibility:visible}}"]
            if first > 0:
                steps.insert(0, "0%{visibility:hidden}")
            if last < len(self.frames) - 1:
                steps.append(f"{self._percent(last + 1)},to{{visibility:hidden}}")
            else:
                steps.append("to{visibility:visible}")
            yield f".{name}{{animation-name:{name}}}@keyframes {name}{{{''.join(steps)}}}"

    def _percent(self, frame: int) -> str:
        return f"{100 * self.frames[frame].at_s / self.duration_s:.3f}".rstrip("0").rstrip(".") + "%"


def render(frames: Sequence[Frame], panes: Sequence[Pane], hold_s: float, title: str) -> str:
    """The picture. It loops; the last frame stays for `hold_s`. Raises ValueError without frames."""
    if not frames:
        raise ValueError("nothing to render")
    timing = _Timing(frames, frames[-1].at_s + hold_s)
    width = max(pane.columns for pane in panes) * CHARACTER_PX + 2 * MARGIN_PX
    body: list[str] = []
    top = 0.0
    for index, pane in enumerate(panes):
        height = BAR_PX + pane.rows * LINE_PX + MARGIN_PX
        body.append(f'<rect y="{top:g}" width="{width:.0f}" height="{height:g}" rx="8" fill="#0d1117"/>')
        body.append(f'<text class="t" x="{MARGIN_PX}" y="{top + 20:g}">{_text(pane.title)}</text>')
        if index == 0:
            body += _clock(timing, width - MARGIN_PX, top + 20)
        for row in range(pane.rows):
            body += _row(timing, [frame.panes[index][row] for frame in frames], top + BAR_PX + (row + 1) * LINE_PX - 4)
        top += height + GAP_PX
    total = top - GAP_PX
    style = STYLE % timing.duration_s + "\n".join(timing.rules())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {total:.0f}" width="{width:.0f}"'
        f' height="{total:.0f}" role="img"><title>{_text(title)}</title>\n<style>\n{style}\n</style>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _clock(timing: _Timing, right: float, y: float) -> Iterator[str]:
    """The time in the recording, and the speed where that is not 1."""
    texts = [_clock_text(frame) for frame in timing.frames]
    for span, text in _spans(texts):
        yield timing.group(span, f'<text class="t" text-anchor="end" x="{right:.1f}" y="{y:g}">{_text(text)}</text>')


def _clock_text(frame: Frame) -> str:
    minutes, tenths = divmod(int(frame.clock_s * 10), 600)
    speed = f"{frame.speed:.0f}x  " if frame.speed >= 1.5 else ""
    return f"{speed}{minutes}:{tenths // 10:02d}.{tenths % 10}"


def _row(timing: _Timing, versions: Sequence[Row], y: float) -> Iterator[str]:
    for span, runs in _spans(versions):
        if runs:
            yield timing.group(span, "".join(_run(run, y) for run in runs))


def _run(run: Run, y: float) -> str:
    style = run.style
    classes = " ".join(name for name, on in (("b", style.bold), ("d", style.dim)) if on)
    attributes = f' class="{classes}"' if classes else ""
    attributes += f' style="fill:{style.colour}"' if style.colour else ""
    length = f' textLength="{len(run.text) * CHARACTER_PX:.1f}"' if len(run.text) > 1 else ""
    x = MARGIN_PX + run.column * CHARACTER_PX
    return f'<text x="{x:.1f}" y="{y:g}"{length}{attributes}>{_text(run.text)}</text>'


def _text(text: str) -> str:
    """Escaped, without what XML does not allow; blanks stay as many as they are."""
    allowed = "".join(c for c in text if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff")
    return escape(allowed).replace(" ", "\u00a0")


def _spans(versions: Sequence[T]) -> Iterator[tuple[Span, T]]:
    """Each version with the frames that it lasts."""
    first = 0
    for version, group in groupby(versions):
        last = first + len(list(group)) - 1
        yield (first, last), version
        first = last + 1
