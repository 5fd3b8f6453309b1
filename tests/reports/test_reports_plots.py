"""Plots: their messages in numbers, and that they are well-formed and inert."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from bidsharm.reports import plots

HOSTILE = '"><script>alert(1)</script>'


def scan(gain: float = 500.0, shift: float = 0.1) -> dict:
    """A scan whose harmonized intensities are exactly the target, and whose raw ones are shifted before a gain."""
    target = np.linspace(0, 1, 101)
    before = (target * (1 - shift) + shift * target**2) * gain
    edges = np.linspace(0, 1, 129)
    flat = {'edges': edges.tolist(), 'density': np.ones(128).tolist()}
    return {
        'quantiles': {'before': before.tolist(), 'after': target.tolist(), 'target': target.tolist()},
        'histogram': {
            'before': {'edges': (edges * gain).tolist(), 'density': (np.ones(128) / gain).tolist()},
            'after': flat,
            'target': flat,
        },
        'measures': {'before': {'p90': float(before[90])}, 'after': {'p90': 0.9}},
    }


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.97412, '0.974'),
        (1234.4, '1\u2009234'),
        (-3.14159, '\u22123.14'),
        (0, '0'),
        (None, 'n/a'),
        (float('nan'), 'n/a'),
        (float('inf'), 'n/a'),
        ('text', 'text'),
        (True, 'yes'),
    ],
)
def test_numbers_for_reading(value: object, text: str) -> None:
    assert plots.number(value) == text


def test_distance_to_the_target_does_not_depend_on_the_scanners_gain() -> None:
    one, two = plots.target_distance(scan(gain=500)), plots.target_distance(scan(gain=7))
    assert one == pytest.approx(two)
    assert one is not None
    assert one[1] == 0
    assert one[0] > 0.005


def test_a_method_that_moves_the_zero_is_compared_with_the_scan_moved_as_well() -> None:
    moved = scan()
    for which in ('after', 'target'):
        moved['quantiles'][which] = [3 * value - 1 for value in moved['quantiles'][which]]
    moved['measures']['after']['p90'] = moved['quantiles']['after'][90]
    before = np.array(moved['quantiles']['before'])
    gain, offset = plots.harmonized_units(moved)
    assert gain * before[[10, 90]] + offset == pytest.approx(np.array(moved['quantiles']['after'])[[10, 90]])
    assert plots.harmonized_units(scan(gain=500))[1] == 0
    distances = plots.target_distance(moved)
    assert distances[1] == 0
    # By a scale alone 0.2: the zero of the scanner would lie at that of the method.
    assert 0.005 < distances[0] < 0.05
    moved['quantiles']['before'] = [5.0] * 101
    assert plots.harmonized_units(moved) is None


def test_histogram_says_its_message_in_numbers() -> None:
    root = ElementTree.fromstring(plots.histogram_svg(scan()))
    distances = plots.target_distance(scan())
    assert distances is not None
    assert f'{plots.number(100 * distances[0], 2)} % before, 0 % after' in root.attrib['aria-label']
    assert root.attrib['role'] == 'img'
    assert root.find('title') is not None
    assert root.find('desc') is not None
    assert [text.text for text in root.iter('text')][-3:] == ['Before', 'After', 'Target']


def test_histogram_without_a_target_or_without_anything() -> None:
    qc = scan()
    qc['quantiles']['target'] = qc['histogram']['target'] = None
    assert 'no target' in plots.histogram_message(qc)
    assert 'Target' not in plots.histogram_svg(qc)
    qc['measures'] = {'before': {'p90': None}, 'after': {}}
    qc['quantiles']['before'] = [float('nan')] * 101
    assert 'Before' not in plots.histogram_svg(qc)  # no common scale to draw it on
    assert plots.histogram_svg({}) == ''
    assert plots.histogram_svg({'histogram': {'after': {'edges': [0, 1], 'density': [None]}}}) == ''


def test_hostile_texts_are_escaped_in_every_plot() -> None:
    line = (np.linspace(0, 1, 9), np.ones(9))
    drawn = [
        plots.densities_svg({HOSTILE: [line]}, title=HOSTILE, label=HOSTILE, message=HOSTILE),
        plots.matrix_svg(np.zeros((2, 2)), [HOSTILE] * 2, [HOSTILE] * 2, top=0, title=HOSTILE, message=HOSTILE),
        plots.projection_svg(
            np.zeros((1, 2)), [HOSTILE], [HOSTILE], sites=[HOSTILE], limits=(1, 0), title=HOSTILE, message=HOSTILE
        ),
        plots.strip_svg(
            {HOSTILE: [(1.0, None, HOSTILE)]}, sites=[HOSTILE], title=HOSTILE, unit=HOSTILE, message=HOSTILE
        ),
    ]  # fmt: skip
    for svg in drawn:
        root = ElementTree.fromstring(svg)  # well-formed
        assert {element.tag for element in root.iter()} <= {
            'svg',
            'title',
            'desc',
            'g',
            'path',
            'circle',
            'rect',
            'text',
        }
        assert HOSTILE in root.attrib['aria-label']


def test_sites_differ_in_shape_as_well_as_colour() -> None:
    styles = [plots.style_of(index) for index in range(40)]
    assert len(set(styles)) == 40


def test_bullet_points_the_same_way_for_least_and_most() -> None:
    def needle(**check: object) -> float:
        root = ElementTree.fromstring(plots.bullet_svg(check))
        return float(root.findall('rect')[-1].attrib['x'])

    least = [needle(value=v, warn=0.9, fail=0.8, direction='min') for v in (0.5, 0.85, 0.99)]
    most = [needle(value=v, warn=5, fail=10, direction='max') for v in (30, 7, 1)]
    assert least == sorted(least)
    assert most == sorted(most)
    assert plots.bullet_svg({'value': None, 'warn': 1, 'fail': 2, 'direction': 'max'}) == ''


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (-0.003, 0.0021), (620, 731), (0, 4e5)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = plots.ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


def test_a_value_on_a_limit_that_is_both_warn_and_fail_is_drawn_as_passing():
    def needle(value: float) -> float:
        svg = str(plots.bullet_svg({'value': value, 'warn': 0.0, 'fail': 0.0, 'direction': 'max'}))
        return float(svg.split('<rect x="')[4].split('"', maxsplit=1)[0])

    def zones() -> list[float]:
        svg = str(plots.bullet_svg({'value': 0.0, 'warn': 0.0, 'fail': 0.0, 'direction': 'max'}))
        return [float(part.split('"', maxsplit=1)[0]) for part in svg.split('<rect x="')[1:4]]

    red, yellow, green = zones()
    assert red < yellow < green < needle(0.0)
    assert needle(0.5) < yellow
