"""The picture of the simulated week: bars of waiting times, drawn as SVG."""

from collections.abc import Mapping, Sequence

Pair = tuple[float, ...]
"""Mean and 95th percentile."""
WIDTH, PANEL, LEFT, TOP, HEIGHT = 860, 400, 56, 64, 220
COLOURS = ("#1f6feb", "#8b949e", "#bf8700", "#cf222e")
TITLES = ("Mean wait, hours", "95th percentile of waits, hours")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.s{fill:#59636e}.g{stroke:#d1d9e0}"
    ".e{stroke:#1f2328;stroke-width:1.5}"
    "rect.p{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.s{fill:#9198a1}.g{stroke:#3d444d}"
    ".e{stroke:#f0f6fc}rect.p{fill:#0d1117}}"
)


def _step(top: float) -> float:
    """Of the scale: 1, 2 or 5 times a power of ten, at most six lines."""
    size = 0.01
    for factor in (2.0, 2.5, 2.0) * 8:
        if top / size <= 6:
            return size
        size *= factor
    return size


def _panel(
    at: int, shares: Sequence[float], names: Sequence[str], means: Mapping[tuple[float, str], Pair],
    intervals: Mapping[tuple[float, str], tuple[Pair, ...]],
) -> list[str]:  # fmt: skip
    left = LEFT + at * (PANEL + 20)
    top = max(intervals[share, name][at][1] for share in shares for name in names)
    step = _step(top)
    top = step * (int(top / step) + 1)
    inner = PANEL - LEFT

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / top)

    parts = [f'<text x="{left}" y="{TOP - 14}" font-weight="600">{TITLES[at]}</text>']
    for i in range(round(top / step) + 1):
        line = y(i * step)
        parts.append(f'<line class="g" x1="{left}" x2="{left + inner}" y1="{line:.1f}" y2="{line:.1f}"/>')
        parts.append(f'<text class="s" x="{left - 8}" y="{line + 4:.1f}" text-anchor="end">{i * step:g}</text>')
    group = inner / len(shares)
    bar = group * 0.8 / len(names)
    for s, share in enumerate(shares):
        begin = left + s * group + group * 0.1
        middle = left + (s + 0.5) * group
        parts.append(
            f'<text class="s" x="{middle:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">{share:.0%}</text>'
        )
        for n, name in enumerate(names):
            x, value = begin + n * bar, means[share, name][at]
            low, high = intervals[share, name][at]
            parts.append(
                f'<rect x="{x:.1f}" y="{y(value):.1f}" width="{bar - 2:.1f}" height="{TOP + HEIGHT - y(value):.1f}" '
                f'fill="{COLOURS[n]}"><title>{name}, {share:.0%} elastic: {value:.2f} h</title></rect>'
            )
            centre = x + bar / 2 - 1
            parts.append(f'<line class="e" x1="{centre:.1f}" x2="{centre:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>')
    return parts


def draw(
    shares: Sequence[float], names: Sequence[str], means: Mapping[tuple[float, str], Pair],
    intervals: Mapping[tuple[float, str], tuple[Pair, ...]],
) -> str:  # fmt: skip
    """Bars by share of elastic jobs and scheduler, with their intervals."""
    height = TOP + HEIGHT + 76
    label = "Waiting times in a simulated week, by share of elastic jobs and scheduler"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">',
        f"<style>{STYLE}</style>",
        f'<rect class="p" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text x="{LEFT}" y="26" font-size="15">A simulated week: how long jobs wait</text>',
    ]
    for at in range(len(TITLES)):
        parts += _panel(at, shares, names, means, intervals)
    under = TOP + HEIGHT + 42
    parts.append(f'<text class="s" x="{LEFT}" y="{under}">Share of jobs that are elastic; lines: 95% intervals.</text>')
    for n, name in enumerate(names):
        x = WIDTH - 420 + n * 104
        parts.append(f'<rect x="{x}" y="{under - 11}" width="12" height="12" fill="{COLOURS[n]}"/>')
        parts.append(f'<text x="{x + 18}" y="{under}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
