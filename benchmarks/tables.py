"""Methods for tables on cohorts whose truth is known: does the site go, and do age, sex and disease stay?

Each cohort has 24 features like regional thickness, in units of the spread between people of one age and sex, of 320 rows at four sites for the fit (`(many rows)`: 1,600;
`small sites`: 150, 80, 20 and 6), and other people for the judgement, on whom nothing is fitted but the classifiers. All methods bring the other sites to site A, which is as the
truth but for noise (0.25). They keep age and sex, and disease where it says `(kept)`. Every line is over all draws of people, effects and sites.

What the sites do (`table_cohorts.py`): `shift` adds to each feature; `spread` multiplies what a person deviates from the expected by; `covariance` also multiplies the patterns that features
share; `gain` multiplies the feature as a whole, with its effects; `bend` draws deviations out on one side. Others have shift and spread: `ages apart` has sites of mean age 35, 45, 55 and 65, in `(curve)`
features fall faster with age; `patients unequal` has 10, 25, 45 and 60 % of patients; `visits` has three of each person, at sites drawn anew (`visits (shift)`: without spread).

- site, linear; site, curved: how often logistic regression, and a support vector machine with radial basis functions, tell the site of people they have not
  seen (0.25 is guessing), with its interval over people. All of them were measured at all four sites, so nothing but the site tells it.
- error: root mean square distance to what site A would have measured without noise, mean over the people. p of the paired t test against doing nothing and against `combat`,
  corrected by Holm over all methods and the measures with one number a person (both accuracies, this error, that of age) of the cohort.
- age kept: the regression of the features on age, sex and disease in a study where everybody was at one site, projected on what the truth gives for the same people; 1 is kept.
- age error: mean absolute error, in years, of a ridge regression that learnt age at site A and is used at the others, on other people.
- sex AUC: of a logistic regression that learnt at site A and is used at the others.
- disease d: Cohen's d between patients and others, mean over the eight features that the disease changes, age and sex taken out, in that study, with its interval over people. -0.6 is planted.
- s: seconds of one core for the fit and its use, median.

`truth` are the features themselves, without noise. `longcombat` needs several visits. The networks have their presets `tiny` and `paper`; a fit of `gcvae` with `paper` takes minutes, so it is left to
`--long`, which writes `results/tables_long.md` of two cohorts. No method here takes rows of a site that it was not fitted on: they are left as they are, and named.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from table_cohorts import (
    KINDS,
    SITES,
    Floats,
    Kind,
    People,
    World,
    curve_of,
    draw_people,
    draw_world,
    measured,
    travellers,
    truth_of,
)

#: Name and preset of each method.
METHODS = (
    ('combat', 'paper'), ('combat-gam', 'paper'), ('covbat', 'paper'), ('longcombat', 'paper'),
    ('gcvae', 'tiny'), ('causal-flow', 'tiny'), ('causal-flow', 'paper'),
)  # fmt: skip
#: What `--long` runs, and on which cohorts.
LONG = (('combat', 'paper'), ('gcvae', 'tiny'), ('gcvae', 'paper'))
LONG_KINDS = ('shift and spread', 'patients unequal (kept)')
TRAINED = ('gcvae', 'causal-flow')
#: People who are judged, in each draw.
JUDGED = 120
FOLDS, RESAMPLES, SEED = 5, 2000, 2026
#: Measures with one number a person.
PERSONAL = ('site, linear', 'site, curved', 'error', 'age error')


@dataclass(frozen=True)
class Draw:
    """A cohort: rows of the fit, a study of other people, and the same people at every site, each with its features."""

    world: World
    fit: People
    fit_values: Floats
    study: People
    study_values: Floats
    travel: People
    travel_values: Floats


def draw(kind: Kind, seed: int) -> Draw:
    """Draw a cohort."""
    world, rng = draw_world(kind, seed), np.random.default_rng([seed, 3])
    fit = draw_people(world, kind.rows, rng)
    study = draw_people(world, (JUDGED * kind.visits // len(SITES),) * len(SITES), rng, first=100_000)
    travel = travellers(study)
    noise = np.random.default_rng([seed, 4])
    return Draw(
        world, fit, measured(world, fit, noise), study, measured(world, study, noise), travel, measured(world, travel, noise)
    )  # fmt: skip


def table(people: People, values: Floats) -> Any:
    """Return rows as a table of features."""
    from bidsharm.harmonizers.table import FeatureTable

    return FeatureTable(
        values, tuple(f'feature {i}' for i in range(values.shape[1])), tuple(np.array(SITES)[people.site]),
        keys=tuple(f'sub-{p}_{i}' for i, p in enumerate(people.person)), people=tuple(f'sub-{p}' for p in people.person),
        covariates={
            'age': people.age, 'sex': np.array(['F', 'M'])[people.male.astype(int)], 'patient': np.array(['no', 'yes'])[people.patient.astype(int)],
        },
    )  # fmt: skip


def harmonized(name: str, preset: str, cohort: Draw, seed: int) -> tuple[Floats, Floats, float]:
    """Return the study and the travellers after a method, and the seconds that it took.

    Raises
    ------
    SystemExit
        If rows were left as they are: then the figures would not be of the method.
    """
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Site
    from bidsharm.harmonizers.table import TableHarmonizer

    kind = registry.find(name)
    assert issubclass(kind, TableHarmonizer)
    method = kind(settings=kind.preset(preset))
    keep = cohort.world.kind.keep.format(age='s(age)' if kind.smooth else 'age')
    start = time.process_time()
    method.fit(table(cohort.fit, cohort.fit_values), target=Site(SITES[0]), keep=keep, seed=seed)
    found = [
        method.harmonize(table(people, values))
        for people, values in ((cohort.study, cohort.study_values), (cohort.travel, cohort.travel_values))
    ]
    if any(one.left.any() for one in found):
        raise SystemExit(f'{name} left rows as they are: {found[0].warnings + found[1].warnings}')
    return found[0].values, found[1].values, time.process_time() - start


# --- Measures ---


def by_person(numbers: NDArray[Any], people: People) -> dict[int, float]:
    """Return the mean of each person's rows."""
    names, index = np.unique(people.person, return_inverse=True)
    return dict(zip(names.tolist(), (np.bincount(index, numbers) / np.bincount(index)).tolist(), strict=True))


def site_told(values: Floats, people: People, model: Any) -> dict[int, float]:
    """Return how often a classifier tells the site of each person's rows, learnt from other people."""
    from sklearn.model_selection import GroupKFold, cross_val_predict

    guess = cross_val_predict(model, values, people.site, groups=people.person, cv=GroupKFold(FOLDS))
    return by_person(guess == people.site, people)


def from_first_site(values: Floats, people: People, wanted: NDArray[Any], model: Any, method: str) -> Floats:
    """Return what a model that learnt at the first site says of other people at the other sites; NaN at the first."""
    from sklearn.model_selection import GroupKFold

    found = np.full(len(values), np.nan)
    for train, test in GroupKFold(FOLDS).split(values, groups=people.person):
        rows, away = train[people.site[train] == 0], test[people.site[test] > 0]
        answer = getattr(model.fit(values[rows], wanted[rows]), method)(values[away])
        found[away] = answer[:, -1] if answer.ndim > 1 else answer
    return found


def kept(values: Floats, truth: Floats, people: People, kind: Kind) -> dict[str, float]:
    """Return how much of the effects of age, sex and disease on the true features is in others; 1 is all of it."""
    columns = np.column_stack([np.ones(len(values)), curve_of(kind, people.age), people.male, people.patient])
    ours, theirs = (np.linalg.lstsq(columns, part, rcond=None)[0][1:] for part in (values, truth))
    shares = (ours * theirs).sum(axis=1) / (theirs**2).sum(axis=1)
    return dict(zip(('age kept', 'sex kept', 'disease kept'), map(float, shares), strict=True))


def ill_part(values: Floats, people: People, world: World) -> dict[int, list[float]]:
    """Return, for each person, the features that the disease changes, without what goes with age and sex, from the mean of the healthy."""
    affected = values[:, world.affected]
    columns = np.column_stack(
        [np.ones(len(values)), curve_of(world.kind, people.age), people.male, people.patient]
    )
    effects = np.linalg.lstsq(columns, affected, rcond=None)[0]
    rest = affected - columns[:, :3] @ effects[:3]
    parts = [by_person(column, people) for column in rest.T]
    return {person: [part[person] for part in parts] for person in parts[0]}


def disease_d(ill: Sequence[Sequence[float]], patient: Sequence[bool]) -> tuple[float, float, float]:
    """Return Cohen's d of patients, mean over the features, with its interval over people."""
    from bidsharm.evaluation.intervals import bootstrap

    data, who = np.asarray(ill), np.asarray(patient)

    def mean_d(patients: NDArray[Any], others: NDArray[Any], axis: int = -1) -> Floats:
        x, y = data[patients], data[others]
        n, m = x.shape[-2], y.shape[-2]
        square = ((n - 1) * x.var(axis=-2, ddof=1) + (m - 1) * y.var(axis=-2, ddof=1)) / (n + m - 2)
        return np.asarray(((x.mean(axis=-2) - y.mean(axis=-2)) / np.sqrt(square)).mean(axis=-1))

    groups = (np.flatnonzero(who), np.flatnonzero(~who))
    interval, _ = bootstrap(groups, mean_d, SEED, RESAMPLES, 0.95, batch=200)
    return float(mean_d(*groups)), *(interval or (np.nan, np.nan))


def judged(cohort: Draw, study: Floats, travel: Floats) -> dict[str, Any]:
    """Return all measures of a cohort's features."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from bidsharm.evaluation.scores import auc

    people, world = cohort.travel, cohort.world
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    age = from_first_site(travel, people, people.age, make_pipeline(StandardScaler(), Ridge(10.0)), 'predict')
    sex = from_first_site(travel, people, people.male, classifier, 'predict_proba')
    away = people.site > 0
    error = np.sqrt(((travel - truth_of(world, people)) ** 2).mean(axis=1))
    others = people.take(np.flatnonzero(away), people.site[away])
    return {
        'site, linear': site_told(travel, people, classifier),
        'site, curved': site_told(travel, people, make_pipeline(StandardScaler(), SVC(C=10.0))),
        'error': by_person(error, people),
        'age error': by_person(np.abs(age - people.age)[away], others),
        'sex AUC': auc(people.male[away], sex[away]),
        'ill': ill_part(study, cohort.study, world),
        'patients': by_person(cohort.study.patient, cohort.study),
        **kept(study, truth_of(world, cohort.study), cohort.study, world.kind),
    }  # fmt: skip


# --- Runs ---


def run(job: tuple[Kind, int, tuple[tuple[str, str], ...]]) -> tuple[str, int, dict[str, dict[str, Any]]]:
    """Return the measures of every method on one draw of a kind of cohort."""
    import torch
    from threadpoolctl import threadpool_limits

    kind, seed, methods = job
    torch.set_num_threads(1)
    found = {}
    with threadpool_limits(1):
        cohort = draw(kind, seed)
        truth = [truth_of(cohort.world, people) for people in (cohort.study, cohort.travel)]
        found['truth'] = judged(cohort, *truth)
        found['nothing'] = judged(cohort, cohort.study_values, cohort.travel_values)
        for name, preset in methods:
            if name == 'longcombat' and kind.visits == 1:
                continue
            study, travel, seconds = harmonized(name, preset, cohort, seed)
            label = f'{name} ({preset})' if name in TRAINED else name
            found[label] = {**judged(cohort, study, travel), 's': seconds}
    print(f'{kind.name}, seed {seed}: done', flush=True)
    return kind.name, seed, found


Measures = dict[str, Any]


def pooled(draws: Sequence[Measures]) -> Measures:
    """Return the measures of a method over several draws: people side by side, other numbers as means."""
    found: Measures = {}
    for name, first in draws[0].items():
        if isinstance(first, dict):
            found[name] = {f'{i}-{p}': v for i, one in enumerate(draws) for p, v in one[name].items()}
        else:
            numbers = [one[name] for one in draws]
            found[name] = float(np.median(numbers) if name == 's' else np.mean(numbers))
    return found


def against(methods: Mapping[str, Measures], base: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the paired comparisons of all methods with one, corrected over methods and measures."""
    from bidsharm.evaluation.statistics import compare_paired, holm

    found = {}
    for name in methods:
        for measure in PERSONAL if name not in (base, 'truth') else ():
            ours, theirs = methods[name][measure], methods[base][measure]
            one = compare_paired(
                [ours[key] for key in theirs], list(theirs.values()), seed=SEED, resamples=RESAMPLES
            )
            found[name, measure] = {
                'difference': one.mean_difference, 'interval': one.mean_interval, 'dz': one.dz, 'p_t': one.p_t, 'p_wilcoxon': one.p_wilcoxon,
                'people': one.n,
            }  # fmt: skip
    for test in ('p_t', 'p_wilcoxon'):
        for one, p in zip(found.values(), holm([one[test] for one in found.values()]), strict=True):
            one[f'{test}_holm'] = p
    return found


def with_interval(numbers: Mapping[str, float]) -> tuple[float, float, float]:
    """Return a mean over people with its interval."""
    from bidsharm.evaluation.intervals import bootstrap

    data = np.array(list(numbers.values()))
    interval, _ = bootstrap((data,), np.mean, SEED, RESAMPLES, 0.95, batch=1000)
    return float(data.mean()), *(interval or (np.nan, np.nan))


def rows_of(kind: Kind, methods: Mapping[str, Measures]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a cohort's lines for the table, and all numbers for the JSON."""
    tests = {base: against(methods, base) for base in ('nothing', 'combat')}
    lines, numbers = [], []
    for name, found in methods.items():
        sites = {which: with_interval(found[which]) for which in PERSONAL[:2]}
        d = disease_d(list(found['ill'].values()), [v > 0.5 for v in found['patients'].values()])
        error, age = (float(np.mean(list(found[which].values()))) for which in ('error', 'age error'))
        p = {base: test.get((name, 'error'), {}).get('p_t_holm') for base, test in tests.items()}
        lines.append({
            'cohort': kind.name, 'method': name, **{which: f'{mean:.2f} ({a:.2f}, {b:.2f})' for which, (mean, a, b) in sites.items()},
            'error': f'{error:.2f}', 'p (nothing)': common.p_text(p['nothing']), 'p (combat)': common.p_text(p['combat']), 'age kept': f'{found["age kept"]:.2f}',
            'age error': f'{age:.1f}', 'sex AUC': f'{found["sex AUC"]:.2f}', 'disease d': f'{d[0]:.2f} ({d[1]:.2f}, {d[2]:.2f})',
            's': f'{found["s"]:.1f}' if 's' in found else '',
        })  # fmt: skip
        numbers.append({
            'cohort': kind.name, 'method': name, **{which: list(three) for which, three in sites.items()}, 'error': error, 'age error': age,
            **{key: found[key] for key in ('age kept', 'sex kept', 'disease kept', 'sex AUC')}, 'disease d': list(d),
            **{f'against {base}': {measure: one for (who, measure), one in test.items() if who == name} for base, test in tests.items()},
        })  # fmt: skip
    return lines, numbers


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('--draws', type=int, default=3, metavar='N', help='of each kind of cohort')
    arguments.add_argument('--jobs', type=int, default=2, metavar='N', help='cohorts at the same time')
    arguments.add_argument('--cohorts', nargs='+', help='only these; nothing is written then')
    arguments.add_argument('--quick', action='store_true', help='no networks; nothing is written then')
    arguments.add_argument('--long', action='store_true', help='gcvae with the settings of its paper')
    args = arguments.parse_args()
    wanted = args.cohorts or (LONG_KINDS if args.long else [kind.name for kind in KINDS])
    kinds = [kind for kind in KINDS if kind.name in wanted]
    methods = tuple(m for m in (LONG if args.long else METHODS) if not (args.quick and m[0] in TRAINED))
    jobs = [(kind, SEED + index, methods) for kind in kinds for index in range(args.draws)]
    with ProcessPoolExecutor(args.jobs, get_context('spawn')) as pool:
        results = list(pool.map(run, jobs))
    lines, numbers = [], []
    for kind in kinds:
        draws = [found for name, _, found in results if name == kind.name]
        found = rows_of(kind, {label: pooled([one[label] for one in draws]) for label in draws[0]})
        lines += found[0]
        numbers += found[1]
    if args.cohorts or args.quick:
        print(common.table(lines))
        return
    about = (__doc__ or '').split('\n', 1)[1]
    text = (
        f'{args.draws} draws of each cohort, {JUDGED} people judged in each.\n{about}\n{common.table(lines)}'
    )
    name, title = ('tables_long' if args.long else 'tables'), 'Methods for tables on cohorts with known truth'
    common.save(name, title=title, text=text, data={'rows': numbers}, seed=SEED)


if __name__ == '__main__':
    main()
