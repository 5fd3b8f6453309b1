"""Plots as SVG text, for pages without scripts or network.

Colours come from the page (``currentColor`` and CSS variables with a fall-back), so that a plot is readable on a
light and on a dark page. Each plot carries a title, a description and an ``aria-label`` with its message in numbers.
The strings are meant to be put inside HTML: they have no XML namespace and no identifiers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

#: Okabe and Ito's palette, in the order in which sites get them; the page may override each (``--s0`` ...).
PALETTE = ('#0072b2', '#d55e00', '#009e73', '#b0569a', '#b8860b', '#3aa0d8', '#8a5a2b', '#6c6c6c')
#: Marker shapes, so that sites differ in more than colour.
SHAPES = ('circle', 'square', 'triangle', 'diamond', 'down', 'plus', 'cross')

_WIDTH, _HEIGHT = 480, 300
_BEFORE, _AFTER = 'var(--before, #8a949c)', 'var(--accent, #1f5f8b)'
_MUTED, _LINE = 'var(--muted, #6b7680)', 'var(--line, #d5dade)'
_SURFACE = 'var(--card, #ffffff)'
Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


def number(value: Any, digits: int = 3) -> str:
    """Return a number for reading: few significant digits, ``n/a`` when there is none, other text as it is."""
    if value is None or isinstance(value, bool):
        return 'n/a' if value is None else ('yes' if value else 'no')
    try:
        real = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(real):
        return 'n/a'
    if real == 0:
        return '0'
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(real))))
    text = f'{real:,.{min(decimals, 6)}f}'
    text = text.rstrip('0').rstrip('.') if '.' in text and decimals > digits else text
    return text.replace(',', '\u2009').replace('-', '\u2212')


def short_number(value: Any) -> str:
    """Return a round number, a limit or a tick, without trailing zeros."""
    real = finite(value)
    return number(value) if real is None else f'{real:,.6g}'.replace(',', '\u2009').replace('-', '\u2212')


def finite(value: Any) -> float | None:
    """Return a number, or None for anything that is not a finite number."""
    if value is None or isinstance(value, bool):
        return None
    try:
        real = float(value)
    except (TypeError, ValueError):
        return None
    return real if math.isfinite(real) else None


def numbers(values: Any, length: int | None = None) -> NDArray[np.float64] | None:
    """Return a list of finite numbers as an array, or None when it is not one (of that length)."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        return None
    cleaned = [finite(value) for value in values]
    if not cleaned or any(value is None for value in cleaned) or (length and len(cleaned) != length):
        return None
    return np.array(cleaned, float)


def style_of(index: int) -> tuple[str, str]:
    """Return the colour and the marker shape of a site."""
    return f'var(--s{index % len(PALETTE)}, {PALETTE[index % len(PALETTE)]})', SHAPES[index % len(SHAPES)]


def marker(shape: str, x: float, y: float, colour: str, size: float = 5.0, hollow: bool = False) -> str:
    """Return one marker as SVG."""
    r, d = size, size * 1.25
    paths = {
        'square': f'M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z',
        'triangle': f'M{x:.1f} {y - d:.1f}l{d:.1f} {1.8 * d:.1f}h{-2 * d:.1f}z',
        'down': f'M{x:.1f} {y + d:.1f}l{d:.1f} {-1.8 * d:.1f}h{-2 * d:.1f}z',
        'diamond': f'M{x:.1f} {y - d:.1f}l{d:.1f} {d:.1f}l{-d:.1f} {d:.1f}l{-d:.1f} {-d:.1f}z',
        'plus': f'M{x - d:.1f} {y:.1f}h{2 * d:.1f}M{x:.1f} {y - d:.1f}v{2 * d:.1f}',
        'cross': f'M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m{-2 * r:.1f} 0l{2 * r:.1f} {-2 * r:.1f}',
    }
    stroked = shape in ('plus', 'cross')
    fill = _SURFACE if hollow else colour
    edge = f'stroke="{colour if hollow or stroked else _SURFACE}"'
    thick = 2.4 if stroked else 1.8 if hollow else 1.0
    if shape not in paths:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{fill}" {edge} stroke-width="{thick}"/>'
    inside = 'none' if stroked else fill
    return f'<path d="{paths[shape]}" fill="{inside}" {edge} stroke-width="{thick}"/>'


def legend_marker(index: int) -> Markup:
    """Return the marker of a site as a small SVG, for a legend in HTML."""
    colour, shape = style_of(index)
    body = marker(shape, 9, 9, colour)
    return Markup(
        f'<svg class="key" viewBox="0 0 18 18" width="18" height="18" aria-hidden="true">{body}</svg>'
    )


def _svg(body: Iterable[str], title: str, message: str, size: tuple[int, int] = (_WIDTH, _HEIGHT)) -> Markup:
    label = escape(f'{title}. {message}')
    # A wide plot is scrolled rather than shrunk until nothing can be read.
    width = f' style="min-width:{size[0]}px"' if size[0] > _WIDTH else ''
    head = f'<svg class="plot" role="img" viewBox="0 0 {size[0]} {size[1]}"{width} aria-label="{label}">'
    texts = f'<title>{escape(title)}</title><desc>{escape(message)}</desc>'
    return Markup(head + texts + ''.join(body) + '</svg>')


def _text(x: float, y: float, text: object, anchor: str = 'middle', extra: str = '') -> str:
    colour = '' if 'fill=' in extra else f' fill="{_MUTED}"'
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="13"{colour} {extra}>'
        f'{escape(str(text))}</text>'
    )


class _Frame:
    """A plot area with linear axes."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        margins: tuple[int, int, int, int] = (16, 16, 46, 16),
        size: tuple[int, int] = (_WIDTH, _HEIGHT),
    ) -> None:
        top, right, bottom, left = margins
        self.left, self.right = float(left), float(size[0] - right)
        self.top, self.bottom = float(top), float(size[1] - bottom)
        self.xlim, self.ylim, self.size = _widened(x), _widened(y), size

    def x(self, value: float) -> float:
        low, high = self.xlim
        share = min(max((value - low) / (high - low), -0.02), 1.02)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.ylim
        share = min(max((value - low) / (high - low), -0.02), 1.05)
        return self.bottom - share * (self.bottom - self.top)

    def line(self, x: NDArray[np.float64], y: NDArray[np.float64], close: bool = False) -> str:
        inside = (x >= self.xlim[0]) & (x <= self.xlim[1])
        points = [f'{self.x(a):.1f} {self.y(b):.1f}' for a, b in zip(x[inside], y[inside], strict=True)]
        if not points:
            return 'M0 0'
        if close:
            first, last = points[0].split()[0], points[-1].split()[0]
            points = [f'{first} {self.bottom:.1f}', *points, f'{last} {self.bottom:.1f}']
        return 'M' + 'L'.join(points)

    def x_axis(self, label: str) -> str:
        parts = [f'<path d="M{self.left} {self.bottom}H{self.right}" stroke="{_LINE}" fill="none"/>']
        for tick in ticks(*self.xlim):
            parts.append(_text(self.x(tick), self.bottom + 18, short_number(tick)))
        parts.append(_text((self.left + self.right) / 2, self.size[1] - 6, label))
        return ''.join(parts)

    def y_axis(self, label: str = '') -> str:
        parts = []
        for tick in ticks(*self.ylim, count=4):
            at = self.y(tick)
            parts.append(f'<path d="M{self.left} {at:.1f}H{self.right}" stroke="{_LINE}" fill="none"/>')
            parts.append(_text(self.left - 8, at + 4, short_number(tick), 'end'))
        if label:
            parts.append(_text(4, self.top - 8, label, 'start'))
        return ''.join(parts)


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not high > low:
        half = max(abs(low) * 0.05, 0.5)
        return low - half, low + half
    return low, high


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round values between two limits."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def density_of(qc: Mapping[str, Any], which: str) -> Pairs | None:
    """Return bin centres and densities of one histogram of a scan, or None.

    Parameters
    ----------
    qc
        What was measured on a scan.
    which
        ``before``, ``after`` or ``target``.
    """
    histogram = _part(_part(qc, 'histogram'), which)
    edges, density = numbers(histogram.get('edges')), numbers(histogram.get('density'))
    if edges is None or density is None or len(edges) != len(density) + 1:
        return None
    return (edges[:-1] + edges[1:]) / 2, density


def _part(mapping: Any, key: str) -> Mapping[str, Any]:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def quantiles_of(qc: Mapping[str, Any], which: str) -> NDArray[np.float64] | None:
    """Return the 101 percentiles of a scan (``before``, ``after`` or ``target``), or None."""
    return numbers(_part(qc, 'quantiles').get(which), 101)


def p90_of(qc: Mapping[str, Any], which: str) -> float | None:
    """Return the 90th percentile inside the brain, or None unless it is above 0."""
    value = finite(_part(_part(qc, 'measures'), which).get('p90'))
    if value is None:
        quantiles = quantiles_of(qc, which)
        value = None if quantiles is None else float(quantiles[90])
    return value if value is not None and value > 0 else None


def target_distance(qc: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the Wasserstein distance to the target before and after, in units of the target's range.

    The range is the 1st to the 99th percentile. The scan before is first brought to the harmonized scale
    (:func:`harmonized_units`). None where a part is missing.
    """
    before, after, target = (quantiles_of(qc, which) for which in ('before', 'after', 'target'))
    units = harmonized_units(qc)
    if before is None or after is None or target is None or units is None:
        return None
    spread = target[99] - target[1]
    if spread <= 0:
        return None
    scaled = units[0] * before + units[1]
    return float(np.abs(scaled - target).mean() / spread), float(np.abs(after - target).mean() / spread)


def harmonized_units(qc: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the gain and the offset that bring a scan before to the harmonized scale, or None where they are not known.

    A scanner's units are arbitrary, so the 90th percentile becomes the harmonized one. A method whose tenth percentile lies below 0
    has moved the zero, too, and the tenth becomes the harmonized one as well; else the offset is 0.
    """
    before, after = (quantiles_of(qc, which) for which in ('before', 'after'))
    if before is not None and after is not None and after[10] < 0:
        width = before[90] - before[10]
        gain = float((after[90] - after[10]) / width) if width > 0 else 0.0
        return (gain, float(after[90] - gain * before[90])) if gain > 0 else None
    high, level = p90_of(qc, 'before'), p90_of(qc, 'after')
    return None if high is None or level is None else (level / high, 0.0)


def histogram_message(qc: Mapping[str, Any]) -> str:
    """Return what the histogram shows, in one sentence with numbers."""
    distances = target_distance(qc)
    if distances is not None:
        return (
            f'Mean distance to the target, as a share of its range of intensities: '
            f'{number(100 * distances[0], 2)} % before, {number(100 * distances[1], 2)} % after.'
        )
    after = quantiles_of(qc, 'after')
    if after is None:
        return 'The distributions were not measured.'
    return (
        f'After harmonization half of the brain lies between {number(after[25])} and {number(after[75])}, '
        f'with the median at {number(after[50])}; there is no target distribution to compare with.'
    )


def histogram_svg(qc: Mapping[str, Any]) -> Markup:
    """Draw the densities before, after and of the target on the harmonized scale.

    Parameters
    ----------
    qc
        What was measured on a scan.

    Returns
    -------
    markupsafe.Markup
        The SVG element; empty when there is no histogram.
    """
    curves = {which: density_of(qc, which) for which in ('before', 'after', 'target')}
    before, units = curves['before'], harmonized_units(qc)
    if before is not None:
        curves['before'] = units and (units[0] * before[0] + units[1], before[1] / units[0])
    drawn = {which: curve for which, curve in curves.items() if curve is not None}
    if not drawn:
        return Markup('')
    frame = _Frame(
        _support(drawn.values()), (0, 1.05 * max(float(c[1].max()) for c in drawn.values())), (34, 16, 46, 16)
    )
    styles = {
        'before': (f'fill="{_BEFORE}" fill-opacity="0.28" stroke="{_BEFORE}" stroke-width="1.5"', True),
        'after': (f'fill="none" stroke="{_AFTER}" stroke-width="2.6" stroke-linejoin="round"', False),
        'target': ('fill="none" stroke="currentColor" stroke-width="1.6" stroke-dasharray="2 4"', False),
    }
    body = [frame.x_axis('Intensity (harmonized scale)')]
    for which, (x, y) in drawn.items():
        look, close = styles[which]
        body.append(f'<path d="{frame.line(x, y, close)}" {look}/>')
    names = {'before': 'Before', 'after': 'After', 'target': 'Target'}
    body += _key([(names[which], styles[which][0]) for which in drawn])
    return _svg(body, 'Intensities inside the brain', histogram_message(qc))


def _key(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts = []
    for column, (name, look) in enumerate(entries):
        x = 16 + 96 * column
        parts.append(f'<path d="M{x} 14h26" {look}/>')
        parts.append(_text(x + 34, 18.5, name, 'start', 'fill="currentColor"'))
    return parts


def _support(curves: Iterable[Pairs]) -> tuple[float, float]:
    """Return the range that holds nearly all of every curve."""
    lows, highs = [], []
    for x, y in curves:
        visible = x[y > 0.01 * y.max()] if y.max() > 0 else x
        lows.append(float(visible.min()))
        highs.append(float(visible.max()))
    low, high = min(lows), max(highs)
    border = 0.03 * (high - low)
    return low - border, high + border


def densities_svg(curves: Mapping[str, Sequence[Pairs]], *, title: str, label: str, message: str) -> Markup:
    """Draw the densities of scans by site: thin lines per scan, a thick one with a marker per site.

    Parameters
    ----------
    curves
        Per site, bin centres and densities of its scans.
    title, label, message
        What the plot is, the name of the x axis, and what it shows in numbers.
    """
    every = [curve for site in curves.values() for curve in site]
    if not every:
        return Markup('')
    frame = _Frame(_support(every), (0, 1.05 * max(float(np.percentile(y, 99)) for _, y in every)))
    grid = np.linspace(*frame.xlim, 160)
    body = [frame.x_axis(label)]
    means = []
    for index, site in enumerate(curves.values()):
        colour, shape = style_of(index)
        every_nth = max(1, -(-len(site) * len(curves) // 200))  # enough to see the spread
        for x, y in site[::every_nth]:
            line = f'stroke="{colour}" stroke-opacity="0.25" stroke-width="1" fill="none"'
            body.append(f'<path d="{frame.line(x, y)}" {line}/>')
        if site:
            mean = np.mean([np.interp(grid, x, y, left=0, right=0) for x, y in site], axis=0)
            line = f'stroke="{colour}" stroke-width="2.4" stroke-linejoin="round" fill="none"'
            means.append(f'<path d="{frame.line(grid, mean)}" {line}/>')
            peak = int(np.argmax(mean))
            means.append(marker(shape, frame.x(grid[peak]), frame.y(mean[peak]), colour))
    return _svg([*body, *means], title, message)


def matrix_svg(
    distances: NDArray[np.float64],
    names: Sequence[str],
    groups: Sequence[str],
    *,
    top: float,
    title: str,
    message: str,
) -> Markup:
    """Draw a distance matrix as a heat map.

    Parameters
    ----------
    distances
        Shape (n, n).
    names, groups
        Label of each row, and the site that it belongs to; rows of a site are next to each other.
    top
        The value with the strongest colour.
    title, message
        What the plot is, and what it shows in numbers.
    """
    count, left, above, side = len(names), 96, 12, 340
    cell, height = side / max(count, 1), 390
    body = []
    for row in range(count):
        for column in range(count):
            value = distances[row, column]
            share = min(max(value / top, 0.0), 1.0) if top > 0 and math.isfinite(value) else 0.0
            x, y = left + column * cell, above + row * cell
            tip = f'{names[row]}, {names[column]}: {number(value, 2)}'
            body.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.2f}" height="{cell:.2f}" fill="{_AFTER}" '
                f'fill-opacity="{0.04 + 0.96 * share:.3f}"><title>{escape(tip)}</title></rect>'
            )
            if count <= 8 and (row != column or names[row] == groups[row]):
                colour = _SURFACE if share > 0.5 else 'currentColor'
                place = (x + cell / 2, y + cell / 2 + 4.5)
                body.append(_text(*place, number(value, 2), extra=f'fill="{colour}" pointer-events="none"'))
    frame = f'fill="none" stroke="{_SURFACE}" stroke-width="2"'
    for group, (first, last) in _runs(groups).items():
        y, middle = above + first * cell, above + (first + last + 1) / 2 * cell
        if first:
            body.append(
                f'<path d="M{left} {y:.1f}h{side}M{left + first * cell:.1f} {above}v{side}" {frame}/>'
            )
        if (last - first + 1) * cell >= 12:
            body.append(_text(left - 8, middle + 4.5, _short(group, 12), 'end'))
    body.append(_ramp(left, above + side + 28, side, top))
    return _svg(body, title, message, (_WIDTH, height))


def _ramp(left: float, y: float, side: float, top: float) -> str:
    steps = [
        f'<rect x="{left + 90 + 16 * step}" y="{y - 10}" width="16" height="10" fill="{_AFTER}" '
        f'fill-opacity="{0.04 + 0.096 * step:.2f}"/>'
        for step in range(11)
    ]
    ends = _text(left + 82, y, '0', 'end') + _text(left + 90 + 16 * 11 + 8, y, number(top, 2), 'start')
    return ''.join(steps) + ends


def _runs(groups: Sequence[str]) -> dict[str, tuple[int, int]]:
    runs: dict[str, tuple[int, int]] = {}
    for index, group in enumerate(groups):
        runs[group] = (runs.get(group, (index, index))[0], index)
    return runs


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + '\u2026'


def projection_svg(
    points: NDArray[np.float64],
    groups: Sequence[str],
    names: Sequence[str],
    *,
    sites: Sequence[str],
    limits: tuple[float, float],
    title: str,
    message: str,
) -> Markup:
    """Draw scans as points of a plane, coloured and shaped by site.

    Parameters
    ----------
    points
        Shape (n, 2).
    groups, names
        Site and name of each scan.
    sites
        All sites in the order of the legend.
    limits
        Half the width and half the height of the plot in units of the points, so that plots can share one scale;
        both axes are drawn at the same scale.
    title, message
        What the plot is, and what it shows in numbers.
    """
    inner = _WIDTH - 64
    height = min(max(inner * limits[1] / limits[0], 150.0), 340.0)
    across = max(limits[0], limits[1] * inner / height)
    up, size = across * height / inner, (_WIDTH, round(height) + 64)
    frame = _Frame((-across, across), (-up, up), (30, 12, 34, 52), size)
    body = [frame.y_axis('Distance')]
    bottom = ''.join(_text(frame.x(t), size[1] - 12, short_number(t)) for t in ticks(*frame.xlim, count=4))
    body.append(bottom)
    order = {site: index for index, site in enumerate(sites)}
    for (x, y), group, name in zip(points, groups, names, strict=True):
        colour, shape = style_of(order[group])
        tip = f'<title>{escape(f"{name} ({group})")}</title>'
        body.append(f'<g fill-opacity="0.9">{tip}{marker(shape, frame.x(x), frame.y(y), colour, 5.5)}</g>')
    return _svg(body, title, message, size)


def strip_svg(
    values: Mapping[str, Sequence[tuple[float | None, float | None, str]]],
    *,
    sites: Sequence[str],
    title: str,
    unit: str,
    message: str,
) -> Markup:
    """Draw one measure by site: hollow markers before, filled ones after, a bar at the median after.

    Parameters
    ----------
    values
        Per site, the value before, the value after and the name of each scan.
    sites
        All sites in the order of the legend.
    title, unit, message
        What the plot is, the unit, and what it shows in numbers.
    """
    flat = [v for site in values.values() for pair in site for v in pair[:2] if v is not None]
    if not flat:
        return Markup('')
    many = len(values) > 6
    step = 48 if many else (_WIDTH - 64) / len(values)
    size = (round(max(_WIDTH, 64 + step * len(values))), _HEIGHT)
    border = 0.08 * (max(flat) - min(flat))
    frame = _Frame((0, len(values)), (min(flat) - border, max(flat) + border), (30, 12, 30, 52), size)
    body = [frame.y_axis(unit)]
    reach = min(step * 0.2, 34.0)
    for index, (site, entries) in enumerate(values.items()):
        colour, shape = style_of(sites.index(site))
        middle = frame.x(index + 0.5)
        name = _text(middle, size[1] - 8, _short(site, 8 if len(values) > 4 else 14))
        body.append(
            marker(shape, middle, size[1] - 14, colour, 6) if many else name
        )  # the legend has the names
        for place, (before, after, scan) in enumerate(entries):
            # A fixed sequence spreads the points; nothing here is random.
            shift = ((place * 0.618 + 0.5) % 1 - 0.5) * reach
            said = [
                f'{number(value)} {when}'
                for value, when in ((before, 'before'), (after, 'after'))
                if value is not None
            ]
            tip = f'<title>{escape(scan)}: {escape(", ".join(said) or "n/a")}</title>'
            shown = ''
            for value, side, hollow in ((before, -0.75, True), (after, 0.75, False)):
                if value is not None:
                    at = (middle + side * reach + shift, frame.y(value))
                    shown += marker(shape, *at, colour, 4.2, hollow)
            body.append(f'<g>{tip}{shown}</g>')
        known = [after for _, after, _ in entries if after is not None]
        if known:
            y, x = frame.y(float(np.median(known))), middle + 0.75 * reach
            body.append(
                f'<path d="M{x - reach * 0.7:.1f} {y:.1f}h{reach * 1.4:.1f}" stroke="currentColor" stroke-width="2"/>'
            )
    return _svg(body, title, message, size)


def forest_svg(
    rows: Mapping[str, tuple[float | None, tuple[float, float] | None, Sequence[float]]],
    *,
    title: str,
    label: str,
    message: str,
    lines: Mapping[str, Sequence[float]] | None = None,
) -> Markup:
    """Draw one measure of several methods: a row each, small dots for people, a marker and a bar for the mean and its interval.

    Parameters
    ----------
    rows
        By method: the estimate, its interval, and the numbers of people; None and empty where there are none.
    title, label, message
        What the plot is, its axis, and what it shows in numbers.
    lines
        By method, values that are marked by a vertical stroke, such as chance.
    """
    marks = {name: list(values) for name, values in (lines or {}).items()}
    flat = [
        value
        for name, (estimate, interval, people) in rows.items()
        for value in (estimate, *(interval or ()), *people, *marks.get(name, ()))
        if value is not None and math.isfinite(value)
    ]
    if not flat:
        return Markup('')
    step, left = 30, 12 + 7.4 * min(max(len(name) for name in rows), 22)
    size = (_WIDTH, round(step * len(rows) + 56))
    border = 0.05 * (max(flat) - min(flat))
    limits = (min(flat) - border, max(flat) + border)
    frame = _Frame(limits, (0, len(rows)), (8, 16, 44, round(left)), size)
    body = [frame.x_axis(label)]
    for index, (name, (estimate, interval, people)) in enumerate(rows.items()):
        y = frame.top + step * (index + 0.5)
        body.append(_text(left - 10, y + 4, _short(name, 22), 'end', 'fill="currentColor"'))
        body.append(
            f'<path d="M{frame.left} {y:.1f}H{frame.right}" stroke="{_LINE}" stroke-dasharray="2 4"/>'
        )
        for value in marks.get(name, ()):
            body.append(
                f'<path d="M{frame.x(value):.1f} {y - 9:.1f}v18" stroke="{_BEFORE}" stroke-width="2"/>'
            )
        for place, value in enumerate(v for v in people if math.isfinite(v)):
            shift = ((place * 0.618 + 0.5) % 1 - 0.5) * 12  # a fixed sequence; nothing here is random
            body.append(
                f'<circle cx="{frame.x(value):.1f}" cy="{y + shift:.1f}" r="2.6" fill="{_BEFORE}" fill-opacity="0.55"/>'
            )
        if interval is not None and all(math.isfinite(v) for v in interval):
            low, high = (frame.x(v) for v in interval)
            body.append(f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{_AFTER}" stroke-width="3"/>')
        if estimate is not None and math.isfinite(estimate):
            tip = f'<title>{escape(f"{name}: {number(estimate)}")}</title>'
            body.append(f'<g>{tip}{marker("circle", frame.x(estimate), y, _AFTER, 5.5)}</g>')
    return _svg(body, title, message, size)


def bullet_svg(check: Mapping[str, Any]) -> Markup:
    """Draw where a value lies between the limits of its check; empty when there is no value.

    Parameters
    ----------
    check
        One check: ``value``, ``warn``, ``fail`` and ``direction`` (``min`` or ``max``).
    """
    value, warn, fail = (finite(check.get(key)) for key in ('value', 'warn', 'fail'))
    direction = check.get('direction')
    if value is None or warn is None or fail is None or direction not in ('min', 'max'):
        return Markup('')
    sign = 1.0 if direction == 'min' else -1.0
    gap = abs(warn - fail) or abs(warn) * 0.25 or 1.0
    # Good is to the right in every bar, whichever way the check points.
    distance = sign * (value - fail) / gap
    if warn == fail and distance >= 0:
        distance += 1.5  # one limit for both: what passes has no yellow zone to cross
    place = min(max(distance, -1.2), 4.2)
    width, low, high = 120.0, -1.4, 4.4
    edges = [0.0, (0 - low) / (high - low) * width, (1 - low) / (high - low) * width, width]
    colours = ('var(--fail, #b3261e)', 'var(--warn, #9a6200)', 'var(--pass, #1f7a4d)')
    zones = ''.join(
        f'<rect x="{a + 1:.1f}" y="6" width="{b - a - 2:.1f}" height="6" rx="2" fill="{colour}" fill-opacity="0.35"/>'
        for a, b, colour in zip(edges[:-1], edges[1:], colours, strict=True)
    )
    x = (place - low) / (high - low) * width
    needle = f'<rect x="{x - 1.5:.1f}" y="1" width="3" height="16" rx="1.5" fill="currentColor"/>'
    head = '<svg class="bullet" viewBox="0 0 120 18" width="120" height="18" aria-hidden="true">'
    return Markup(f'{head}{zones}{needle}</svg>')
