"""Line charts over time as inline SVG: no script, no file, no font from outside; colours come from the page's CSS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH: Final = 960
HEIGHT: Final = 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 34, 26
_PLOT_W: Final = WIDTH - _LEFT - _RIGHT
_PLOT_H: Final = HEIGHT - _TOP - _BOTTOM


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, its (seconds, value) points, and the CSS class that colours it."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True, slots=True)
class Band:
    """A shaded stretch of time with a name."""

    begin_s: float
    end_s: float
    name: str


@dataclass(frozen=True, slots=True)
class Line:
    """A vertical line at an instant; ``style`` is its CSS class, ``text`` its tooltip."""

    at_s: float
    style: str
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What all charts of a page share: the time axis, its bands and its lines."""

    seconds: float
    bands: Sequence[Band] = ()
    lines: Sequence[Line] = ()


class _Scale:
    def __init__(self, values: Sequence[float], *, log: bool) -> None:
        self._log = log
        top = max([*values, 1e-9])
        if log:
            low = min([value for value in values if value > 0] or [0.1])
            self._low, self._high = math.floor(math.log10(low)), max(math.ceil(math.log10(top)), 1)
            self.ticks = [10.0**power for power in range(self._low, self._high + 1)]
        else:
            step = _nice(top / 4)
            self._low, self._high = 0, max(math.ceil(top / step), 1) * step  # type: ignore[assignment]
            self.ticks = [number * step for number in range(round(self._high / step) + 1)]

    def y(self, value: float) -> float:
        at = math.log10(max(value, 10.0**self._low)) if self._log else value
        share = (at - self._low) / (self._high - self._low)
        return _TOP + _PLOT_H * (1 - min(max(share, 0), 1))


def _nice(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(raw, 1e-9)))
    return next((factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw), 10 * power)


def chart(title: str, unit: str, series: Sequence[Series], frame: Frame, *, log: bool = False) -> str:
    """An <svg> element. ``log``: a logarithmic value axis."""
    scale = _Scale([value for one in series for _, value in one.points], log=log)

    def x(seconds: float) -> float:
        return _LEFT + _PLOT_W * min(max(seconds / max(frame.seconds, 1e-9), 0), 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{_LEFT}" y="14">{escape(title)} <tspan class="unit">{escape(unit)}</tspan></text>',
        *_bands(frame, x),
        *_axes(scale, frame, x),
        *_lines(frame, x),
        *(_line(one, scale, x) for one in series),
        *_legend(series),
        "</svg>",
    ]
    return "\n".join(parts)


def _bands(frame: Frame, x: Callable[[float], float]) -> list[str]:
    parts, label_end = [], 0.0
    for number, band in enumerate(frame.bands):
        left, right = x(band.begin_s), x(band.end_s)
        parts.append(
            f'<rect class="band band-{number % 2}" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 0.5):.1f}" '
            f'height="{_PLOT_H}"><title>{escape(band.name)} {band.end_s - band.begin_s:.2f} s</title></rect>'
        )
        # Armed and hold take a fraction of a second: their names stand in the tooltip and the table only.
        if right - left > 6.5 * len(band.name) and left >= label_end:
            parts.append(f'<text class="phase" x="{left + 3:.1f}" y="{_TOP + 11}">{escape(band.name)}</text>')
            label_end = left + 6.5 * len(band.name)
    return parts


def _axes(scale: _Scale, frame: Frame, x: Callable[[float], float]) -> list[str]:
    parts = []
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{_short(tick)}</text>')
    step = _nice(frame.seconds / 10)
    for number in range(int(frame.seconds / step) + 1):
        at = number * step
        parts.append(f'<text class="tick" x="{x(at):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_short(at)} s</text>')
    return parts


def _lines(frame: Frame, x: Callable[[float], float]) -> list[str]:
    return [
        f'<line class="mark {line.style}" x1="{x(line.at_s):.1f}" x2="{x(line.at_s):.1f}" y1="{_TOP}" '
        f'y2="{_TOP + _PLOT_H}"><title>{line.at_s:.2f} s: {escape(line.text)}</title></line>'
        for line in frame.lines
    ]


def _line(one: Series, scale: _Scale, x: Callable[[float], float]) -> str:
    points = " ".join(f"{x(at):.1f},{scale.y(value):.1f}" for at, value in one.points)
    return f'<polyline class="line {one.style}" points="{points}"/>'


def _legend(series: Sequence[Series]) -> list[str]:
    parts, at = [], float(WIDTH - _RIGHT)
    for one in reversed(series):
        at -= 7 * len(one.name) + 24
        parts.append(f'<line class="line {one.style}" x1="{at:.0f}" x2="{at + 14:.0f}" y1="10" y2="10"/>')
        parts.append(f'<text class="legend" x="{at + 18:.0f}" y="14">{escape(one.name)}</text>')
    return parts


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
