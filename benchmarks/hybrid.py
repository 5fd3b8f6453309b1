"""Images, features, or both: the volumes of simulated travelling heads after each way of harmonization, by the app itself.

HEADS is a data set of `bidsharm-simulate` (the Makefile has the command), whose people were in every scanner. For each method for images,
`bidsharm HEADS WORK/<method> participant`, then `group --table-harmonizer combat --table-keep "age + C(sex)"`. From the tables that these write, the volumes of grey matter,
white matter and fluid before and after the images' harmonization are taken, and ComBat is fitted on them for each person anew, without that person. The lines "as the app writes them"
are the harmonized table as it is, from a fit on all rows, and so flatter.

- CoV: standard deviation over scanners by mean, of one person's volume, mean over three tissues and all people, in percent, with its interval over people. The p are of paired
  t tests of it against doing nothing, against features only, and of images and features against the same images only; corrected by Holm over all lines and two measures (CoV, error).
- ICC: ICC(2,1) of agreement, of each tissue.
- site: balanced accuracy of logistic regression that tells the scanner of people it has not seen from the three volumes, and the 95 % quantile of this accuracy with permuted scanners.
- error: difference to the true volumes, in percent of them, mean over the tissues. A bias that is the same everywhere is in it: ComBat brings scanners to their mean, and not to the truth.
- bias: mean signed difference to the true volumes of grey matter, white matter and fluid, in percent of them.
- age r, age kept: correlation of the share of grey matter with age, and its slope over the slope of the true share, in a study in which everybody was in one scanner, drawn at random; means over 1,000 such
  studies. The line `truth` is of the true volumes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

PROGRAM = Path(sys.executable).with_name('bidsharm')
METHODS = ('tscore', 'nyul', 'isotone')
TABLE_METHOD, KEEP = 'combat', 'age + C(sex)'
TISSUES = ('gm', 'wm', 'csf')
SEED, STUDIES, RESAMPLES, PERMUTATIONS = 2026, 1000, 2000, 200
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Volumes:
    """Volumes of people in scanners, shape (people, scanners, tissues), in mL."""

    people: tuple[str, ...]
    scanners: tuple[str, ...]
    values: Floats


def run_app(heads: Path, out: Path, method: str, cache: Path, cores: int, people: Sequence[str]) -> None:
    """Harmonize the scans of some people, then the tables; what is there is not done again."""
    steps = [
        ['participant', '--harmonizer', method, '--site', 'session', '--skip-bids-validation', '--offline', '--work-dir', str(cache), '--nprocs', str(cores)],
        ['group', '--harmonizer', method, '--site', 'session', '--table-harmonizer', TABLE_METHOD, '--table-keep', KEEP],
    ]  # fmt: skip
    for level, *options in steps:
        subprocess.run(
            [PROGRAM, heads, out, level, '--participant-label', *people, *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def feature_rows(table: Path, people: Path, which: str) -> Any:
    """Return the volumes of a group table as rows of features, ``before`` or ``after``, with age and sex."""
    from bidsharm.bids.feature_tables import Choice, feature_table, read_participants_table, read_table

    choice = Choice(
        ('site',), ('age', 'sex'), tuple(f'{which}_volume_{tissue}_ml' for tissue in TISSUES), read_participants_table(people)
    )  # fmt: skip
    rows = feature_table(read_table(table), choice)
    order = [rows.features.index(name) for name in choice.features]
    return replace(rows, values=rows.values[:, order], features=choice.features)


def held_out(rows: Any) -> Any:
    """Return the rows after ComBat that was fitted, for each person, on all others."""
    from bidsharm.harmonizers.combat import ComBat

    people, values = np.asarray(rows.people), rows.values.copy()
    for person in np.unique(people):
        own = people == person
        method = ComBat()
        method.fit(rows.take(~own), keep=KEEP)
        values[own] = method.harmonize(rows.take(own)).values
    return replace(rows, values=values)


def volumes_of(rows: Any) -> Volumes:
    """Return rows by person and scanner.

    Raises
    ------
    SystemExit
        If somebody was not in every scanner once.
    """
    people, scanners = tuple(sorted(set(rows.people))), tuple(sorted(set(rows.sites)))
    place = {pair: row for row, pair in enumerate(zip(rows.people, rows.sites, strict=True))}
    if len(place) != len(rows.people) or len(place) != len(people) * len(scanners):
        raise SystemExit('Somebody was not in every scanner once.')
    index = [[place[person, scanner] for scanner in scanners] for person in people]
    return Volumes(people, scanners, rows.values[np.array(index)])


def true_volumes(
    table_of_people: Path, people: Sequence[str], scanners: Sequence[str]
) -> tuple[Volumes, Floats]:
    """Return the true volumes, the same in every scanner, and the ages of some people."""
    from bidsharm.bids.feature_tables import read_participants_table

    table = read_participants_table(table_of_people)
    known = table.column('participant_id')
    order = [known.index(name) for name in people]
    columns = [np.array(table.column(f'{tissue}_ml'), dtype=float)[order] for tissue in TISSUES]
    values = np.repeat(np.stack(columns, axis=1)[:, None], len(scanners), axis=1)
    return Volumes(tuple(people), tuple(scanners), values), np.array(table.column('age'), dtype=float)[order]


# --- Measures ---


def of_age(values: Floats, truth: Floats, ages: Floats) -> tuple[float, float]:
    """Return correlation of the share of grey matter with age, and its slope over that of the truth, in studies with one scan of each person."""
    rng = np.random.default_rng(SEED)
    share, real = (part[..., 0] / part.sum(axis=-1) for part in (values, truth))
    found = []
    for _ in range(STUDIES):
        one = share[np.arange(len(ages)), rng.integers(0, share.shape[1], len(ages))]
        found.append((np.corrcoef(one, ages)[0, 1], np.polyfit(ages, one, 1)[0]))
    r, slope = np.mean(found, axis=0)
    return float(r), float(slope / np.polyfit(ages, real[:, 0], 1)[0])


def measures(volumes: Volumes, truth: Volumes, ages: Floats) -> dict[str, Any]:
    """Return all measures of volumes."""
    from bidsharm.evaluation.probe import site_probe
    from bidsharm.evaluation.travelling import cov, icc

    values, count = volumes.values, len(volumes.scanners)
    probe = site_probe(
        values.reshape(-1, len(TISSUES)), list(volumes.scanners) * len(volumes.people), [p for p in volumes.people for _ in range(count)],
        seed=SEED, permutations=PERMUTATIONS, resamples=RESAMPLES,
    )  # fmt: skip
    error = np.abs(values / truth.values - 1).mean(axis=(1, 2))
    r, slope = of_age(values, truth.values, ages)
    return {
        'bias': (100 * (values / truth.values - 1).mean(axis=(0, 1))).tolist(),
        'CoV': (100 * np.nanmean(cov(values), axis=1)).tolist(), 'error': (100 * error).tolist(),
        'ICC': {tissue: icc(values[:, :, i]).agreement for i, tissue in enumerate(TISSUES)},
        'site': probe.accuracy, 'site interval': probe.interval, 'site chance': probe.chance, 'site chance high': probe.chance_high, 'site p': probe.p,
        'age r': r, 'age kept': slope,
    }  # fmt: skip


def compared(ways: Mapping[str, Mapping[str, Any]], base: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return paired comparisons with one way, corrected over all ways and both measures with a number for each person."""
    from bidsharm.evaluation.statistics import compare_paired, holm

    pairs = [(way, name) for way in ways if way not in (base, 'truth') for name in ('CoV', 'error')]
    tests = [
        compare_paired(ways[way][name], ways[base][name], seed=SEED, resamples=RESAMPLES)
        for way, name in pairs
    ]
    corrected = holm([test.p_t for test in tests])
    return {
        pair: {'difference': t.mean_difference, 'interval': t.mean_interval, 'dz': t.dz, 'p_t': t.p_t, 'p_wilcoxon': t.p_wilcoxon, 'p_t_holm': p}
        for pair, t, p in zip(pairs, tests, corrected, strict=True)
    }  # fmt: skip


def ways_of(heads: Path, work: Path, methods: Sequence[str]) -> dict[str, Volumes]:
    """Return the volumes after each way."""
    people = heads / 'participants.tsv'
    found: dict[str, Volumes] = {}
    for method in methods:
        table = work / method / 'group_T1w.tsv'
        before, after = (feature_rows(table, people, which) for which in ('before', 'after'))
        # What was measured before is the same whatever came after; the first run's is taken.
        found.setdefault('nothing', volumes_of(before))
        found.setdefault('features only', volumes_of(held_out(before)))
        found[f'images only ({method})'] = volumes_of(after)
        found[f'images, then features ({method})'] = volumes_of(held_out(after))
        written = feature_rows(table.with_name('group_T1w_desc-harmonized.tsv'), people, 'after')
        found[f'the same, as the app writes them ({method})'] = volumes_of(written)
    return found


def line(way: str, found: Mapping[str, Any], tests: Mapping[str, Mapping[Any, Any]]) -> dict[str, Any]:
    """Return a line of the table; tests are by the way that others are compared with."""
    if way == 'truth':
        return {'way': way, 'age r': f'{found["age r"]:.2f}', 'age kept': f'{found["age kept"]:.2f}'}
    bases = {'nothing': 'nothing', 'features only': 'features only'}
    if method := next((method for method in METHODS if f'({method})' in way), ''):
        bases['images only'] = f'images only ({method})'
    p = {
        f'p ({name})': tests.get(base, {}).get((way, 'CoV'), {}).get('p_t_holm')
        for name, base in bases.items()
    }
    return {
        'way': way, 'CoV, %': common.with_interval(found['CoV'], 2, seed=SEED, resamples=RESAMPLES), 'p (nothing)': '', 'p (features only)': '', 'p (images only)': '',
        **{name: common.p_text(value) for name, value in p.items()},
        **{f'ICC {tissue}': '' if value is None else f'{value:.2f}' for tissue, value in found['ICC'].items()},
        'site': '' if found['site'] is None else f'{found["site"]:.2f} (chance to {found["site chance high"]:.2f})',
        'error, %': f'{np.mean(found["error"]):.1f}', 'bias, %': ' / '.join(f'{value:+.0f}' for value in found['bias']), 'age r': f'{found["age r"]:.2f}', 'age kept': f'{found["age kept"]:.2f}',
    }  # fmt: skip


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('heads', type=Path, help='data set of bidsharm-simulate')
    arguments.add_argument('work', type=Path, help='folder for derivatives; a run that was stopped goes on')
    arguments.add_argument('--methods', nargs='+', default=METHODS, help='for images')
    arguments.add_argument('--people', type=int, metavar='N', help='only the first so many')
    arguments.add_argument('--nprocs', type=int, default=2)
    args = arguments.parse_args()
    labels = sorted(path.name.removeprefix('sub-') for path in args.heads.glob('sub-*'))[: args.people]
    for method in args.methods:
        run_app(args.heads, args.work / method, method, args.work / 'cache', args.nprocs, labels)
        print(method, flush=True)
    ways = ways_of(args.heads, args.work, args.methods)
    raw = ways['nothing']
    truth, ages = true_volumes(args.heads / 'participants.tsv', raw.people, raw.scanners)
    found = {way: measures(volumes, truth, ages) for way, volumes in {'truth': truth, **ways}.items()}
    alone = ('nothing', 'features only', *(f'images only ({method})' for method in args.methods))
    tests = {base: compared(found, base) for base in alone}
    rows = [line(way, numbers, tests) for way, numbers in found.items() if way != 'truth']
    rows.append(line('truth', found['truth'], tests))
    text = (
        f'{len(truth.people)} people, {len(truth.scanners)} scanners ({", ".join(truth.scanners)}).\n'
        f'{(__doc__ or "").split(chr(10), 1)[1]}\n{common.table(rows)}'
    )  # fmt: skip
    data = {
        'ways': found,
        'against': {name: {f'{way}: {measure}': one for (way, measure), one in test.items()} for name, test in tests.items()},
    }  # fmt: skip
    common.save('hybrid', title='Images, features, or both', text=text, data=data, seed=SEED)


if __name__ == '__main__':
    main()
