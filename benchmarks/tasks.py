"""Methods that predict, on simulated brains of known age and tissue: does the site go, and does what is predicted stay?

Brains are drawn from the label maps that BIDSHARM_LABELS names, with lesions in some and other differences between people; people of the judgement are of other maps than those of the training, and four of the latter share a brain, with another age each. The planted effect: from 20 to 80 years the
cortex loses 50 % of its share of each voxel to fluid, which a scanner with another contrast of the two shows as more or as less. Three
scanners are drawn from documented ranges and see them with noise, blur and tone of their own; coil fields are removed exactly, as preprocessing would do nearly. Everybody of the training was at one scanner; the others, whom no network has seen, were at all three.
Ages are equally spread at all scanners. Networks are small, on brains of 6 mm (4 mm for segmentations), and have the same budget each; `--seeds` trainings each, whose numbers are averaged over for each person.

- site told: balanced accuracy of a logistic regression on the features of the network (for `nothing` and `combat`: on the features that they predict from), trained and judged on different
  people who travelled; 0.33 is guessing. Travelling people differ in nothing but the scanner, so this is harsher than a probe of a cohort.
- score: mean absolute error of the `age`, in years; AUC of "older than 50" (`old`); Dice of GM and WM (`dseg`), where labels come from the first scanner only and the others are judged.
- between scanners: mean over people of the standard deviation, over the three scanners, of what is predicted: what a study would take for change if somebody moved.
- p: paired Wilcoxon test over people against `erm` (of `old`, for the distance of the probability from the truth), corrected by Holm over methods and measures of a task.

`nothing` and `combat` predict from 60 features without any network: means over blocks of 36 mm and their spread, by ridge or logistic regression; combat is fitted on the training people, with the age kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

from bidsharm.training.volumes import TrainingSet, TrainingVolume

Floats = NDArray[np.float64]
SITES = ('A', 'B', 'C')
BRAINS, TIMES, TESTED, SEED = 120, 4, 30, 2026
#: Label maps, of those in the folder, whose people are kept for the judgement.
UNSEEN = 3
#: Share of the cortex that is lost at 80 years: the planted effect.
LOSS = 0.5
#: Voxels of 2 mm in an edge of the voxels that networks see.
COARSE = {'age': 3, 'old': 3, 'dseg': 2}
#: Settings that all networks share, and those of single methods on top.
SCALAR = {'widths': (8, 16, 32), 'convs': (1, 1, 1), 'code': 32, 'hidden': 32, 'batch': 12, 'rate': 1e-3, 'average': 0.98, 'hold_out': 0.0}  # fmt: skip
VOXELS = {'levels': (8, 16, 32), 'edge': 0, 'batch': 2, 'rate': 3e-3, 'average': 0.98, 'hold_out': 0.0}
OWN: dict[str, dict[str, Any]] = {
    'unlearning': {'pace': 5.0, 'turns': 2},
    'learn-to-ignore': {'widths': (8, 16, 32)},
    'uda-image': {'generator': (8, 16), 'discriminator': (8, 16, 32), 'window': 5},
    'unit-seg': {'width': 8, 'blocks': 1, 'downs': 1, 'discriminator': (8, 16, 32), 'judge_norm': 'none', 'spectral': True, 'adversarial': 1.0, 'reconstruction': 10.0, 'divergence': 0.01, 'cycle': 10.0, 'cycle_divergence': 0.01, 'noise': 0.1},
}  # fmt: skip
TASKS = {
    'age': ('erm', 'unlearning', 'ad2a'),
    'old': ('erm', 'unlearning', 'ad2a', 'learn-to-ignore'),
    'dseg': ('erm', 'unlearning', 'uda-latent', 'uda-image', 'unit-seg'),
}


@dataclass(frozen=True)
class Seen:
    """A scan of a person: as networks see it, by voxels of 2 mm in an edge of theirs, and means over blocks, of squares too."""

    volumes: Mapping[int, TrainingVolume]
    means: NDArray[np.float32]
    squares: NDArray[np.float32]
    inside: NDArray[np.float32]
    person: str
    site: str
    age: float


def drawn(job: tuple[Path, int, int, Path]) -> list[Path]:
    """Draw people of one anatomy, and return the files that keep them; those that are there are not drawn anew."""
    from bidsharm.training.brains import draw_brains

    path, count, seed, work = job
    name = path.name.split('.')[0]
    files = [work / f'{name}_{seed}_{number}.npz' for number in range(count)]
    if not all(file.exists() for file in files):
        for file, brain in zip(files, draw_brains([path], count, seed=seed, degrees=2), strict=True):
            brain.save(file)
    return files


def cohort(seed: int, work: Path) -> tuple[list[Seen], list[Seen]]:
    """Return the scans of the training, and those of people who travelled."""
    from bidsharm.training.brains import Brain
    from bidsharm.training.scans import ScanSource

    maps = sorted(Path(os.environ['BIDSHARM_LABELS']).glob('*.nii.gz'))
    # Nobody of the judgement has the anatomy of anybody of the training.
    first, last = maps[:-UNSEEN], maps[-UNSEEN:]
    parts = ((first, -(-BRAINS // len(first))), (last, -(-TESTED // len(last))))
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(path, count, seed, work) for some, count in parts for path in some]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        files = list(pool.map(drawn, jobs))
    ours = [file for some in files[: len(first)] for file in some]
    rng = np.random.default_rng(seed)
    ours = [ours[row] for row in rng.permutation(len(ours))[:BRAINS]]
    others = [file for some in files[len(first) :] for file in some][:TESTED]
    drawn_brains = [Brain.load(file) for file in [*ours * TIMES, *others]]
    brains = [thinned(brain, float(rng.uniform(20, 80))) for brain in drawn_brains]
    source = ScanSource(brains, 'T1w', seed=seed)
    scanners = chosen(source)
    count = BRAINS * TIMES
    train = [seen(source, row, scanners[row % 3], SITES[row % 3], brains) for row in range(count)]
    test = [
        seen(source, row, scanner, site, brains)
        for row in range(count, count + TESTED)
        for scanner, site in zip(scanners, SITES, strict=True)
    ]
    return train, test


def thinned(brain: Any, age: float) -> Any:
    """Return a brain of another age, whose cortex has lost a share to fluid by that: the planted effect."""
    from bidsharm.training.brains import KINDS

    parts = brain.fractions.astype(np.float32)
    grey, fluid = KINDS.index('GM'), KINDS.index('CSF')
    lost = LOSS * (age - 20) / 60 * parts[grey]
    parts[grey] -= lost
    parts[fluid] += lost
    return replace(brain, fractions=np.round(parts).clip(0, 255).astype(np.uint8), age=age)


def chosen(source: Any) -> list[int]:
    """Return three usual scanners: voxels below 1.6 mm, enough signal, and contrasts of GM to WM that differ."""
    signals = source.signals
    middle = signals.signal.shape[2] // 2
    ratio = signals.signal[:, 2, middle].abs().numpy()  # of GM, relative to WM
    fair = np.flatnonzero((signals.voxel.amax(dim=1) < 1.6).numpy() & (signals.snr > 12).numpy())
    ranked = fair[np.argsort(ratio[fair])]
    return [int(ranked[int(share * (len(ranked) - 1))]) for share in (0.1, 0.5, 0.9)]


def seen(source: Any, row: int, scanner: int, site: str, brains: Sequence[Any]) -> Seen:
    """Return a scan of a brain at a scanner."""
    from bidsharm.imaging.lowres import SHAPE

    scan = source.scan(row, scanner)
    place = tuple(scan.voxels.numpy().T)
    values, mask = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    tissue = np.zeros((3, *SHAPE), np.float32)
    # Coil fields are what preprocessing removes before any method of this table.
    flat = (scan.values * (-scan.log_gain).exp()).numpy()
    values[place] = flat / np.percentile(flat, 99)
    mask[place] = True
    tissue[(slice(None), *place)] = scan.tissue.numpy()
    person, age = f'p{row}', float(brains[row].age)
    # Only what is needed: hundreds of scans at 2 mm would fill the memory.
    return Seen(
        {edge: volume_of(values, mask, tissue, (person, site, age), edge) for edge in sorted(set(COARSE.values()))},
        blocks(values, 18), blocks(values**2, 18), blocks(mask, 18), person, site, age,
    )  # fmt: skip


def blocks(volume: NDArray[Any], edge: int) -> NDArray[np.float32]:
    """Return means over cubes of so many voxels; what is left over at the far end is cut off."""
    size = [n // edge for n in volume.shape]
    cut = volume[tuple(slice(0, n * edge) for n in size)]
    return cut.reshape(size[0], edge, size[1], edge, size[2], edge).mean(axis=(1, 3, 5)).astype(np.float32)


def volume_of(
    values: NDArray[Any], mask: NDArray[Any], tissue: NDArray[Any], who: tuple[str, str, float], edge: int
) -> TrainingVolume:
    """Return a scan in voxels of so many of 2 mm along each edge."""
    person, site, age = who
    inside = blocks(mask, edge) > 0.5
    shares = np.stack([blocks(part, edge) for part in tissue])
    labels = np.where(inside, 1 + shares.argmax(axis=0), 0).astype(np.uint8)
    seen_values = np.where(inside, blocks(values, edge), 0)
    return TrainingVolume(
        seen_values, inside, f'{person}-{site}', person, site, site, 'T1w', labels, {'age': age}
    )  # fmt: skip


def features(scans: Sequence[Seen]) -> Floats:
    """Return features that need no network: means and spreads over blocks of 36 mm that hold brain in everybody."""
    inside = np.min([scan.inside for scan in scans], axis=0) > 0.5
    rows = []
    for scan in scans:
        mean, square = scan.means[inside], scan.squares[inside]
        rows.append(np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0))]))
    return np.array(rows, float)


# --- Predictions ---


@dataclass
class Predicted:
    """What a method says of the people who travelled: numbers to be judged, and features that may tell the site."""

    said: Floats
    features: Floats
    seconds: float


def by_network(name: str, task: str, train: Sequence[Seen], test: Sequence[Seen], args: Any, seed: int) -> Predicted:  # fmt: skip
    """Train a network and predict."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.task import Task, TrainedTask
    from bidsharm.training.options import Budget, Running

    kind: Any = registry.find(name)
    what = {'age': Task('regression', 'age'), 'old': Task('classification', 'old', ('no', 'yes')), 'dseg': Task('segmentation', 'dseg', ('CSF', 'GM', 'WM'), (3, 1, 2))}[task]  # fmt: skip
    usual = VOXELS if task == 'dseg' else SCALAR
    settings = kind.preset('paper', what.kind, **{**usual, **OWN.get(name, {})})
    method: TrainedTask = kind(settings=settings)
    data = TrainingSet([scan.volumes[COARSE[task]] for scan in train])
    truth: dict[str, Any] = {}
    for scan, volume in zip(train, data.volumes, strict=True):
        if task == 'age':
            truth[volume.name] = scan.age
        elif task == 'old':
            truth[volume.name] = 'yes' if scan.age > 50 else 'no'
        elif scan.site == SITES[0]:
            truth[volume.name] = 'yes'
    started = time.perf_counter()
    method.fit(data, truth, task=what, running=Running(seed=seed, budget=Budget(args.steps), interval=10**9))
    found = [method.predict(scan.volumes[COARSE[task]]) for scan in test]
    seconds = time.perf_counter() - started
    codes = np.array([one.embedding for one in found], float)
    if task == 'age':
        return Predicted(np.array([one.value for one in found]), codes, seconds)
    if task == 'old':
        return Predicted(np.array([one.shares[1] for one in found if one.shares is not None], float), codes, seconds)  # fmt: skip
    pairs = zip(found, (scan.volumes[COARSE[task]] for scan in test), strict=True)
    return Predicted(np.array([dice(one.labels, volume.tissue) for one, volume in pairs]), codes, seconds)


def dice(mine: Any, theirs: Any) -> float:
    """Return the mean Dice of GM and WM."""
    return float(np.mean([2 * ((mine == k) & (theirs == k)).sum() / max((mine == k).sum() + (theirs == k).sum(), 1) for k in (2, 3)]))  # fmt: skip


def kept(file: Path, predict: Callable[[], Predicted]) -> Predicted:
    """Return what a file keeps, or predict and keep that: a run that was stopped goes on."""
    if file.exists():
        with np.load(file) as found:
            return Predicted(found['said'], found['features'], float(found['seconds']))
    one = predict()
    part = file.with_name(f'{file.name}.part')
    with part.open('wb') as handle:
        np.savez(handle, said=one.said, features=one.features, seconds=one.seconds)
    part.replace(file)
    return one


def without_network(harmonized: bool, task: str, train: Sequence[Seen], test: Sequence[Seen]) -> Predicted:
    """Predict by a linear model of features, with ComBat before or not."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    started = time.perf_counter()
    table = features([*train, *test])
    if harmonized:
        table = by_combat(table, train, test)
    first, last = table[: len(train)], table[len(train) :]
    ages = np.array([scan.age for scan in train])
    if task == 'age':
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 25))).fit(first, ages)
        said = model.predict(last)
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(first, ages > 50)  # fmt: skip
        said = model.predict_proba(last)[:, 1]
    return Predicted(said, last, time.perf_counter() - started)


def by_combat(table: Floats, train: Sequence[Seen], test: Sequence[Seen]) -> Floats:
    """Return features harmonized by ComBat, fitted on the people of the training."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Site
    from bidsharm.harmonizers.table import FeatureTable

    def rows(values: Floats, scans: Sequence[Seen]) -> FeatureTable:
        return FeatureTable(
            values, tuple(f'f{i}' for i in range(values.shape[1])), tuple(scan.site for scan in scans),
            people=tuple(f'{scan.person}' for scan in scans), covariates={'age': np.array([scan.age for scan in scans])},
        )  # fmt: skip

    method: Any = registry.find('combat')()
    target = Site(SITES[0])
    method.fit(rows(table[: len(train)], train), target=target, keep='age')
    parts = [method.harmonize(rows(values, scans)).values for values, scans in ((table[: len(train)], train), (table[len(train) :], test))]  # fmt: skip
    return np.concatenate(parts)


# --- Judgement ---


def judged(task: str, predicted: Sequence[Predicted], test: Sequence[Seen], seed: int) -> dict[str, Any]:
    """Return measures of a method, and numbers of each person for the tests; several trainings are averaged."""
    from sklearn.metrics import roc_auc_score

    from bidsharm.evaluation.probe import site_probe

    sites, people = [scan.site for scan in test], [scan.person for scan in test]
    ages = np.array([scan.age for scan in test])
    names = sorted(set(people))
    probes = [site_probe(one.features, sites, people, seed=seed, permutations=20, resamples=200) for one in predicted]  # fmt: skip
    wrong = {'age': lambda one: np.abs(one.said - ages), 'old': lambda one: np.abs(one.said - (ages > 50)), 'dseg': lambda one: 1 - one.said}[task]  # fmt: skip
    # Where labels come from the first scanner, the question is how the others do.
    counts = np.array([site != SITES[0] if task == 'dseg' else True for site in sites])
    error = np.mean([by_person(np.where(counts, wrong(one), np.nan), people, names) for one in predicted], axis=0)  # fmt: skip
    spread = np.mean([spread_of(one.said, people, names) for one in predicted], axis=0)
    found: dict[str, Any] = {
        'site told': float(np.mean([probe.accuracy or 0 for probe in probes])),
        'between scanners': float(spread.mean()),
        's': round(float(np.mean([one.seconds for one in predicted]))),
        'persons': {'error': error, 'between scanners': spread},
    }
    if task == 'old':
        found['AUC'] = float(np.mean([roc_auc_score(ages > 50, one.said) for one in predicted]))
    found['error'] = float(error.mean())
    return found


def by_person(values: Floats, people: Sequence[str], names: Sequence[str]) -> Floats:
    """Return the mean of each person."""
    owner = np.array(people)
    return np.array([np.nanmean(values[owner == name]) for name in names])


def spread_of(values: Floats, people: Sequence[str], names: Sequence[str]) -> Floats:
    """Return the standard deviation of each person over the scanners."""
    owner = np.array(people)
    return np.array([values[owner == name].std(ddof=1) for name in names])


def tested(found: Mapping[str, Mapping[str, Any]], seed: int) -> dict[tuple[str, str], tuple[float, str]]:
    """Return p and the interval of the mean difference from ``erm``, by method and measure."""
    from bidsharm.evaluation.statistics import compare_paired, holm

    keys = [(name, measure) for name in found if name != 'erm' for measure in ('error', 'between scanners')]
    tests = [
        compare_paired(
            found[name]['persons'][measure], found['erm']['persons'][measure], seed=seed, resamples=2000
        )
        for name, measure in keys
    ]
    corrected = holm([one.p_wilcoxon for one in tests])
    return {
        key: (p if p is not None else float('nan'), f'{one.mean_difference:+.3f}')
        for key, one, p in zip(keys, tests, corrected, strict=True)
    }


def rows_of(task: str, found: Mapping[str, Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return the lines of a table."""
    tests = tested(found, seed)
    rows = []
    for name, one in found.items():
        score = {
            'age': f'{one["error"]:.2f} years',
            'old': f'AUC {one.get("AUC", 0):.3f}',
            'dseg': f'Dice {1 - one["error"]:.3f}',
        }[task]
        p = {measure: common.p_text(tests[name, measure][0]) if name != 'erm' else '' for measure in ('error', 'between scanners')}  # fmt: skip
        rows.append({
            'task': task, 'method': name, 'site told': f'{one["site told"]:.2f}', 'score': score, 'p of score': p['error'],
            'between scanners': f'{one["between scanners"]:.3f}', 'p of between': p['between scanners'], 's': one['s'],
        })  # fmt: skip
    return rows


def main() -> None:
    import torch

    arguments = common.parser(__doc__)
    arguments.add_argument(
        'work', type=Path, help='folder that keeps brains and predictions; a run that was stopped goes on'
    )
    arguments.add_argument('--steps', type=int, default=800, help='of each training')
    arguments.add_argument('--seeds', type=int, default=3, help='trainings of each method')
    arguments.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    arguments.add_argument('--without', nargs='*', default=[], help='methods that are left out')
    args = arguments.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    train, test = cohort(SEED, args.work)
    print(f'{len(train)} scans to train on, {len(test)} to judge', flush=True)
    rows: list[dict[str, Any]] = []
    for task in args.tasks:
        found: dict[str, dict[str, Any]] = {}
        if task != 'dseg':
            for name, harmonized in (('nothing', False), ('combat', True)):
                found[name] = judged(task, [without_network(harmonized, task, train, test)], test, SEED)
        for name in (name for name in TASKS[task] if name not in args.without):
            runs = [
                kept(
                    args.work / f'{task}_{name}_{args.steps}_{seed}.npz',
                    partial(by_network, name, task, train, test, args, seed),
                )
                for seed in range(args.seeds)
            ]
            found[name] = judged(task, runs, test, SEED)
            print(task, name, {k: v for k, v in found[name].items() if k != 'persons'}, flush=True)
        rows += rows_of(task, found, SEED)
    about = f'{BRAINS * TIMES} people for the training, {TESTED} who travelled, {args.steps} steps, {args.seeds} trainings each.'
    common.save(
        'tasks', title='Methods that predict, on simulated brains', text=common.body(__doc__, about, rows),
        data={'rows': rows}, seed=SEED,
    )  # fmt: skip


if __name__ == '__main__':
    main()
