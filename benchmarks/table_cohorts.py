"""Cohorts whose truth is known, for `tables.py`: features like regional thickness of people at four sites.

All is in units of the spread between people of one age and sex. Site A is as the truth, but for noise; the others shift, stretch, mix or bend what is
there. People, noise and scanners have random streams of their own, so that cohorts of one seed differ by what their kind says only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SITES = ('A', 'B', 'C', 'D')
FEATURES, FACTORS, AFFECTED = 24, 3, 8
#: Share of the variance between people that features have in common, and spread of the noise of a scan.
COMMON, NOISE = 0.5, 0.25
#: What a disease does to each affected feature.
ILL = -0.6
#: Years between visits.
INTERVAL = 2.0


@dataclass(frozen=True)
class Kind:
    """What sets a cohort apart.

    Parameters
    ----------
    name
        For the table.
    shift, scale, patterns, gain, bend
        Size of what the sites do: spread of the shifts; of the logarithm of what multiplies each feature's deviation from what is expected, the patterns
        that features share, and the feature itself; and of the curvature of the deviation.
    ages, years
        Mean age of each site's people, and their spread.
    curve
        Whether features fall faster with age.
    patients
        Share of patients at each site.
    rows
        Rows of the fit at each site.
    visits
        Of each person; the site is drawn anew for each.
    keep
        Formula; ``{age}`` is a curve for the method that keeps curves.
    """

    name: str
    shift: float = 0.7
    scale: float = 0.3
    patterns: float = 0.0
    gain: float = 0.0
    bend: float = 0.0
    ages: tuple[float, ...] = (50.0, 50.0, 50.0, 50.0)
    years: float = 12.0
    curve: bool = False
    patients: tuple[float, ...] = (0.35, 0.35, 0.35, 0.35)
    rows: tuple[int, ...] = (80, 80, 80, 80)
    visits: int = 1
    keep: str = '{age} + C(sex)'


APART: dict[str, Any] = {'ages': (35.0, 45.0, 55.0, 65.0), 'years': 8.0}
UNEQUAL = (0.1, 0.25, 0.45, 0.6)
KINDS = (
    Kind('no site effect', shift=0.0, scale=0.0),
    Kind('shift', scale=0.0),
    Kind('shift and spread'),
    Kind('shift and spread (many rows)', rows=(400, 400, 400, 400)),
    Kind('covariance', patterns=0.5),
    Kind('gain', scale=0.0, gain=0.25),
    Kind('bend', scale=0.0, bend=0.6),
    Kind('ages apart', **APART),
    Kind('ages apart (curve)', curve=True, **APART),
    Kind('patients unequal', patients=UNEQUAL),
    Kind('patients unequal (kept)', patients=UNEQUAL, keep='{age} + C(sex) + C(patient)'),
    Kind('small sites', rows=(150, 80, 20, 6)),
    Kind('visits (shift)', scale=0.0, visits=3),
    Kind('visits', visits=3),
)


@dataclass(frozen=True)
class Scanner:
    """What a site does: to each feature, shape (features,), and to each pattern, shape (patterns,)."""

    shift: Floats
    scale: Floats
    patterns: Floats
    gain: Floats
    bend: Floats


@dataclass(frozen=True)
class World:
    """What is planted: means, effects of age (a decade), sex and disease, shape (features,); the patterns; the scanners by site."""

    kind: Kind
    mean: Floats
    slope: Floats
    male: Floats
    ill: Floats
    loadings: Floats
    scanners: tuple[Scanner, ...]

    @property
    def affected(self) -> NDArray[np.bool_]:
        """Features that the disease changes."""
        return np.asarray(self.ill != 0)


@dataclass(frozen=True)
class People:
    """One row a visit: who, where, how old, and how the person deviates from others by patterns and by feature."""

    person: Integers
    site: Integers
    age: Floats
    male: NDArray[np.bool_]
    patient: NDArray[np.bool_]
    patterns: Floats
    own: Floats

    def take(self, rows: Integers, site: Integers) -> People:
        """Return some of the rows, at other sites."""
        parts = {item.name: getattr(self, item.name)[rows] for item in fields(self)}
        return People(**{**parts, 'site': site})


def curve_of(kind: Kind, age: Floats) -> Floats:
    """Return what the effect of age goes with: decades from 50, or a curve of them."""
    decades = (age - 50) / 10
    return decades + 0.35 * decades**2 if kind.curve else decades


def draw_world(kind: Kind, seed: int) -> World:
    """Draw what is planted."""
    rng, machines = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    ill = np.zeros(FEATURES)
    ill[rng.permutation(FEATURES)[:AFFECTED]] = ILL
    mean, slope = rng.uniform(8, 12, FEATURES), rng.uniform(-0.45, -0.15, FEATURES)
    male, loadings = rng.normal(0, 0.35, FEATURES), rng.normal(0, 1, (FEATURES, FACTORS))
    loadings *= np.sqrt(COMMON) / np.linalg.norm(loadings, axis=1, keepdims=True)
    scanners = tuple(_draw_scanner(kind, machines, index > 0) for index in range(len(SITES)))
    return World(kind, mean, slope, male, ill, loadings, scanners)


def _draw_scanner(kind: Kind, rng: np.random.Generator, other: bool) -> Scanner:
    """Return a scanner; the first site's changes nothing."""
    whole, each, patterns = rng.normal(), rng.normal(size=(4, FEATURES)), rng.normal(size=FACTORS)
    return Scanner(
        other * kind.shift * 0.7 * (whole + each[0]), np.exp(other * kind.scale * each[1]),
        np.exp(other * kind.patterns * patterns), np.exp(other * kind.gain * each[2]), other * kind.bend * each[3],
    )  # fmt: skip


def draw_people(world: World, rows: tuple[int, ...], rng: np.random.Generator, first: int = 0) -> People:
    """Draw people with so many rows at each site; numbers of persons start at ``first``."""
    kind = world.kind
    home = np.repeat(np.arange(len(SITES)), np.asarray(rows) // kind.visits)
    count = home.size
    age = np.clip(rng.normal(np.asarray(kind.ages)[home], kind.years), 20, 85)
    male, patient = rng.random(count) < 0.5, rng.random(count) < np.asarray(kind.patients)[home]
    patterns, own = rng.normal(size=(count, FACTORS)), rng.normal(size=(count, FEATURES))
    at = np.repeat(np.arange(count), kind.visits)
    site = home[at] if kind.visits == 1 else rng.integers(0, len(SITES), at.size)
    later = np.tile(np.arange(kind.visits), count) * INTERVAL
    found = People(first + np.arange(count), home, age, male, patient, patterns, own).take(at, site)
    found.age[:] += later
    return found


def travellers(people: People) -> People:
    """Return the first visit of everybody at every site."""
    _, one = np.unique(people.person, return_index=True)
    return people.take(np.repeat(one, len(SITES)), np.tile(np.arange(len(SITES)), one.size))


def expected(world: World, people: People) -> Floats:
    """Return what age, sex and disease make of a feature, shape (rows, features)."""
    causes = np.column_stack([curve_of(world.kind, people.age), people.male, people.patient])
    return np.asarray(world.mean + causes @ np.stack([world.slope, world.male, world.ill]))


def truth_of(world: World, people: People) -> Floats:
    """Return the features without noise, as at site A."""
    return expected(world, people) + _deviation(world, people, people.patterns)


def _deviation(world: World, people: People, patterns: Floats) -> Floats:
    return patterns @ world.loadings.T + np.sqrt(1 - COMMON) * people.own


def measured(world: World, people: People, rng: np.random.Generator) -> Floats:
    """Return the features as each row's site measures them, with noise."""
    of = {
        item.name: np.stack([getattr(s, item.name) for s in world.scanners])[people.site]
        for item in fields(Scanner)
    }
    deviation = _deviation(world, people, people.patterns * of['patterns'])
    deviation = bent(deviation + NOISE * rng.normal(size=deviation.shape), of['bend'])
    value = expected(world, people) - world.mean + of['scale'] * deviation
    return np.asarray(world.mean + of['shift'] + of['gain'] * value)


def bent(deviation: Floats, bend: Floats) -> Floats:
    """Return deviations that are drawn out on one side and pressed together on the other, in the same order; a bend of 0 leaves them."""
    safe = np.where(np.abs(bend) < 1e-9, 1.0, bend)
    return np.asarray(np.where(np.abs(bend) < 1e-9, deviation, np.expm1(safe * deviation) / safe))
