"""Charts as inline SVG: bars, a scatter, a heat table, a reliability curve. Labels are escaped; nothing is fetched."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#2f6fb2", "#d1603d", "#3c8d5a", "#8a5fb0", "#b3892c", "#5f6b7a")
"""Told apart by people who do not see red or green too, by lightness."""
WIDTH, HEIGHT = 420.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 12.0, 14.0, 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour. Example: `Series(name="dpo", points=((10.0, 0.5),))`."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Bars side by side. Example: `Bars(title="length", labels=("1", "2"), series={"chosen": (3.0, 4.0)})`."""

    title: str
    labels: tuple[str, ...]
    series: dict[str, tuple[float, ...]]
    """Name -> one height a label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """From data to pixels."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        low, high = min(values), max(values)
        room = (high - low) * 0.04 or max(1.0, abs(low)) * 0.5
        return cls(low=low - room, high=high + room, start=start, end=end)

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """About five round numbers."""
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= min((1, 2, 5, 10), key=lambda m: abs((self.high - self.low) / (m * step) - 5))
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def scatter(series: Sequence[Series], x_title: str, y_title: str) -> str:
    """Points of several series with a legend."""
    points = [point for one in series for point in one.points]
    x = _Axis.over([a for a, _ in points], LEFT, WIDTH - RIGHT)
    y = _Axis.over([b for _, b in points], HEIGHT - BOTTOM, TOP)
    parts = [_axes(x, y, x_title, y_title)]
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="2.6" fill="{colour}" fill-opacity="0.55"/>' for a, b in one.points]
        parts.append(f'<circle cx="{LEFT + 8}" cy="{TOP + 6 + 15 * number}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 17}" y="{TOP + 10 + 15 * number}">{_label(one.name)}</text>')
    return _svg(parts, WIDTH, HEIGHT, f"{y_title} over {x_title}")


def reliability(curve: Sequence[tuple[float, float, int]]) -> str:
    """(what was said, what was so, how many) of each bin, beside the diagonal of a calibrated model."""
    x = _Axis(low=0.0, high=1.0, start=LEFT, end=LEFT + HEIGHT - TOP - BOTTOM)
    y = _Axis(low=0.0, high=1.0, start=HEIGHT - BOTTOM, end=TOP)
    parts = [
        _axes(x, y, "chance that it gives", "share that was so"),
        f'<line x1="{x(0.0)}" y1="{y(0.0)}" x2="{x(1.0)}" y2="{y(1.0)}" stroke="#999" stroke-dasharray="4 4"/>',
        f'<polyline points="{" ".join(f"{x(a)},{y(b)}" for a, b, _ in curve)}" fill="none" stroke="{COLOURS[0]}"/>',
    ]
    parts += [
        f'<circle cx="{x(a)}" cy="{y(b)}" r="3.5" fill="{COLOURS[0]}"><title>{a:.2f} said, {b:.2f} so, n = {n}</title></circle>'
        for a, b, n in curve
    ]
    return _svg(parts, LEFT + HEIGHT - TOP - BOTTOM + RIGHT, HEIGHT, "reliability curve")


def heat(names: Sequence[str], rates: Mapping[str, Mapping[str, Any]]) -> str:
    """Each row's rate against each column; blue above one half, red below."""
    cell, left, top = 66.0, 130.0, 26.0
    parts = []
    for i, a in enumerate(names):
        parts.append(f'<text x="{left - 8}" y="{top + cell * i + cell / 2 + 4}" text-anchor="end">{_label(a, 18)}</text>')
        parts.append(f'<text x="{left + cell * i + cell / 2}" y="{top - 8}" text-anchor="middle">{_label(a, 10)}</text>')
        for j, b in enumerate(names):
            at = f'x="{left + cell * j}" y="{top + cell * i}" width="{cell - 2}" height="{cell - 2}"'
            if a == b:
                parts.append(f'<rect {at} fill="#eee"/>')
                continue
            rate = rates[a][b]
            strength = min(1.0, abs(rate["value"] - 0.5) * 2)
            colour = COLOURS[0] if rate["value"] >= 0.5 else COLOURS[1]
            shown = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}, n = {rate['n']}"
            parts.append(f'<rect {at} fill="{colour}" fill-opacity="{0.12 + 0.75 * strength:.2f}"><title>{shown}</title></rect>')
            place = f'x="{left + cell * j + (cell - 2) / 2}" y="{top + cell * i + cell / 2 + 4}"'
            parts.append(f'<text {place} text-anchor="middle">{100 * rate["value"]:.1f}</text>')
    return _svg(parts, left + cell * len(names), top + cell * len(names), "win rates")


def bars(chart: Bars) -> str:
    """Grouped bars from zero, each with its value as a tooltip."""
    width, foot, top = 1.5 * WIDTH, 2 * TOP + 8, TOP + 8
    highest = max((value for values in chart.series.values() for value in values), default=0) or 1.0
    slot = width / max(1, len(chart.labels))
    bar = 0.8 * slot / max(1, len(chart.series))
    tall = HEIGHT * 2 / 3
    parts = [f'<text x="0" y="{TOP}">{_label(chart.title, 80)}</text>']
    for place, (name, values) in enumerate(chart.series.items()):
        colour = COLOURS[place % len(COLOURS)]
        if len(chart.series) > 1:
            left = width - 150 * (len(chart.series) - place)
            parts.append(f'<rect x="{left}" y="4" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{left + 14}" y="{TOP}">{_label(name)}</text>')
        for i, value in enumerate(values):
            high = (tall - foot - top) * value / highest
            x, y = i * slot + 0.1 * slot + place * bar, tall - foot - high
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar:.1f}" height="{high:.1f}" fill="{colour}">'
                f"<title>{_label(chart.labels[i])}: {_label(name)} {value:g}</title></rect>"
            )
    for i, label in enumerate(chart.labels):
        middle = (i + 0.5) * slot
        parts.append(f'<text x="{middle:.1f}" y="{tall - foot + 16:.1f}" text-anchor="middle">{_label(label)}</text>')
    parts.append(f'<text x="0" y="{tall - 4:.1f}">highest bar: {highest:g}</text>')
    return _svg(parts, width, tall, chart.title)


def _axes(x: _Axis, y: _Axis, x_title: str, y_title: str) -> str:
    parts = [
        f'<line x1="{x.start}" y1="{y.start}" x2="{x.end}" y2="{y.start}" stroke="#555"/>',
        f'<line x1="{x.start}" y1="{y.start}" x2="{x.start}" y2="{y.end}" stroke="#555"/>',
        f'<text x="{(x.start + x.end) / 2}" y="{y.start + 32}" text-anchor="middle">{_label(x_title)}</text>',
        f'<text transform="translate(13 {(y.start + y.end) / 2}) rotate(-90)" text-anchor="middle">{_label(y_title)}</text>',
    ]
    for tick in x.ticks():
        parts.append(f'<text x="{x(tick)}" y="{y.start + 15}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks():
        parts.append(f'<text x="{x.start - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<line x1="{x.start}" y1="{y(tick)}" x2="{x.end}" y2="{y(tick)}" stroke="#eee"/>')
    return "".join(parts)


def _label(text: str, most: int = 40) -> str:
    return html.escape(text if len(text) <= most else text[: most - 1] + "…")


def _svg(parts: Sequence[str], width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{_label(title)}</title>{''.join(parts)}</svg>"
    )
