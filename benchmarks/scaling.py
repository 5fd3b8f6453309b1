"""10,000 subjects: where time and storage go, what a shared file system sees, how long planning takes, how many GPUs keep up.

One subject with one simulated T1w of 1 mm is run as a task of an array job, once by itself and once under strace. Planning is
measured on data sets of tiny scans. What is said of 10,000 is the product of one subject, or a line through two sizes, unless
it says "measured".
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import common
import numpy as np
import queueing
import startup
import traffic

PROGRAM = Path(sys.executable).with_name('bidsharm')
MANY = 10000

PLAN_ONE = """
import sys
from bidsharm.cli.parser import parse_settings
from bidsharm.workflows.participant import plan_run
print(len(plan_run(parse_settings(sys.argv[1:])).selection.scans))
"""

START = 'import bidsharm.workflows.base, bidsharm.interfaces.preprocess, bidsharm.interfaces.derivatives'


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('--sizes', nargs=2, type=int, default=[1000, 2000], help='data sets to plan')
    arguments.add_argument('--parts', nargs='+', choices=('subject', 'planning', 'gpus'), help='default: all')
    arguments.add_argument('--cores', type=int, default=1000, help='cores of the simulated cluster')
    args = arguments.parse_args()
    parts = args.parts or ('subject', 'planning', 'gpus')
    if 'subject' in parts:
        measure_subject()
    if 'planning' in parts:
        save_planning(args.sizes)
    if 'gpus' in parts:
        save_gpus(args.cores)


def measure_subject() -> None:
    """Run one subject by itself, again, and under strace."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        bids = folder / 'bids'
        simulate = [PROGRAM.with_name('bidsharm-simulate'), bids, '--subjects', '1', '--scanners', '1']
        subprocess.run([*simulate, '--resolution', '1'], check=True, stdout=subprocess.DEVNULL)
        alone = run_alone(bids, folder)
        seen = run_traced(bids, folder)
    save_steps(alone.pop('steps'))
    save_subject(alone, seen)


def command(bids: Path, out: Path, work: Path) -> list[str | Path]:
    """Return the command of a task of the array job, on one core."""
    task = [
        PROGRAM,
        bids,
        out,
        'participant',
        '--participant-label',
        '01',
        '--nprocs',
        '1',
        '--skip-bids-validation',
    ]
    return [*task, '--work-dir', work]


def run_alone(bids: Path, folder: Path) -> dict[str, Any]:
    """Run one subject undisturbed; return seconds, files and bytes, and the seconds of its steps."""
    out, work = folder / 'out', folder / 'work'
    usage = common.measure(command(bids, out, work), stdout=subprocess.DEVNULL)
    if usage.code:
        raise SystemExit(f'bidsharm ended with {usage.code}.')
    log = next(out.glob('logs/*/nipype.log')).read_text()
    steps = Counter[str]()
    for name, seconds in re.findall(r'Finished "([^"]+)", elapsed time ([\d.]+)s', log):
        steps[name] += float(seconds)
    sizes = {name: size_of(place) for name, place in (('bids', bids), ('out', out), ('work', work))}
    raw = size_of(bids, '_T1w.nii.gz', below='sub-01')
    again = common.measure(command(bids, out, folder / 'again'), stdout=subprocess.DEVNULL)
    return {'CPU s': usage.cpu_s, 'peak GB': usage.peak_gb, 'steps': steps, 'raw': raw, 'again CPU s': again.cpu_s,
            **sizes}  # fmt: skip


def size_of(folder: Path, ending: str = '', below: str = '') -> tuple[int, int]:
    """Return the number of files and their bytes."""
    files = [
        path for path in (folder / below).rglob(f'*{ending}') if path.is_file() and not path.is_symlink()
    ]
    return len(files), sum(path.stat().st_size for path in files)


def run_traced(bids: Path, folder: Path) -> dict[str, Counter[str]]:
    """Run the same subject into other folders and count what is asked of each."""
    out, work = folder / 'traced-out', folder / 'traced-work'
    software = [
        Path(sys.prefix).resolve(),
        Path(sys.base_prefix).resolve(),
        Path(common.__file__).resolve().parents[1],
    ]
    areas = {'data set': [bids], 'output': [out], 'work': [work], 'software': software}
    return traffic.trace(command(bids, out, work), areas, folder)


def save_subject(alone: dict[str, Any], seen: dict[str, Counter[str]]) -> None:
    rows = [
        row('CPU time', alone['CPU s'], 's', alone['CPU s'] * MANY / 3600, 'core hours'),
        row(
            'CPU time when all is done already',
            alone['again CPU s'],
            's',
            alone['again CPU s'] * MANY / 3600,
            'core hours',
        ),
        row('memory, peak', alone['peak GB'], 'GB'),
        row('raw scan', alone['raw'][1] / 1e6, 'MB', alone['raw'][1] * MANY / 1e12, 'TB'),
    ]
    for name, key in (('output folder', 'out'), ('working folder (goes away)', 'work')):
        files, size = alone[key]
        rows.append(row(f'{name}, size', size / 1e6, 'MB', size * MANY / 1e12, 'TB'))
        rows.append(row(f'{name}, files', files, '', files * MANY / 1e6, 'million'))
    names = {
        'data set': 'data set',
        'output': 'output folder',
        'work': 'working folder',
        'software': 'software',
    }
    for area, name in names.items():
        count = seen[area]
        rows.append(
            row(
                f'{name}, metadata operations',
                count['metadata'],
                '',
                count['metadata'] * MANY / 1e6,
                'million',
            )
        )
        rows.append(row(f'{name}, read', count['read'] / 1e6, 'MB', count['read'] * MANY / 1e12, 'TB'))
        rows.append(
            row(f'{name}, written', count['written'] / 1e6, 'MB', count['written'] * MANY / 1e12, 'TB')
        )
    text = (
        'A subject with one simulated T1w of 1 mm, default method, as a task of the array job. Metadata operations are system '
        'calls that name a file or ask for its attributes or a listing, found or not; what is read through memory maps '
        '(libraries, mostly) is not in "read". Software is Python with all packages, where it lies on the file system; in an '
        'image it is one file. The last column is 10,000 times one subject.\n\n' + common.table(rows)
    )
    data = {'alone': alone, 'traffic': {name: dict(count) for name, count in seen.items()}}
    common.save('scaling', title='One subject and 10,000', text=text, data=data, seed=0)


def row(what: str, one: float, unit: str, many: float | None = None, many_unit: str = '') -> dict[str, str]:
    """Return a line of the table of one subject and many."""
    all_of_them = '' if many is None else f'{many:.3g} {many_unit}'.strip()
    return {
        'what': what,
        'one subject': f'{one:.3g} {unit}'.strip() if unit else f'{one:.0f}',
        '10,000': all_of_them,
    }


def save_steps(steps: Counter[str]) -> None:
    total = sum(steps.values())
    rows = [
        {'step': name, 'seconds': f'{seconds:.2f}', 'share': f'{100 * seconds / total:.0f} %'}
        for name, seconds in steps.most_common(10)
    ]
    rest = total - sum(seconds for _, seconds in steps.most_common(10))
    rows.append({'step': 'all others', 'seconds': f'{rest:.2f}', 'share': f'{100 * rest / total:.0f} %'})
    text = (
        'Steps of that subject on one core, as Nipype timed them (wall seconds; other work on the machine stretches them, shares '
        'hardly change).\n\n' + common.table(rows)
    )
    common.save(
        'scaling_steps',
        title='Where the time of a subject goes',
        text=text,
        data={'steps': dict(steps)},
        seed=0,
    )


def save_planning(sizes: list[int]) -> None:
    """Measure planning of everything in one command, and by a task for one subject."""
    rows = []
    for label, options in (
        ('a task, method without target', []),
        ('a task, method that learns from the cohort', ['--harmonizer', 'nyul']),
    ):
        found = [(size, plan_one(size, options)) for size in (*sizes, MANY)]
        rows += [
            {'what': label, 'subjects': size, 'CPU seconds': f'{seconds:.3g}', 'how': 'measured'}
            for size, seconds in found
        ]
    found = [(size, float(str(startup.planning(size)['CPU s']))) for size in sizes]
    rows += [
        {
            'what': 'one command, all graphs',
            'subjects': size,
            'CPU seconds': f'{seconds:.3g}',
            'how': 'measured',
        }
        for size, seconds in found
    ]
    slope, start = np.polyfit(*np.array(found).T, 1)
    rows.append({'what': 'one command, all graphs', 'subjects': MANY, 'CPU seconds': f'{start + slope * MANY:.3g}',
                 'how': 'line through the two'})  # fmt: skip
    empty = common.repeat(lambda: subprocess.run([sys.executable, '-c', START], check=True), 3)
    text = (
        'Index, plan and, for one command, the graphs of all batches. A task plans its own subject; for a target that is learnt '
        'it looks at all scans and their sidecars, unless `--model` names what was learnt. With a plugin, '
        f'every step starts a Python that loads Nipype and bidsharm first: {empty:.1f} s.\n\n'
        + common.table(rows)
    )
    common.save('scaling_planning', title='Planning', text=text, data={'rows': rows, 'start s': empty})


def plan_one(subjects: int, options: list[str]) -> float:
    """Return the CPU seconds in which a task plans one subject of a data set."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / 'bids'
        root.mkdir()
        startup.make_dataset(root, subjects)
        task = [
            str(root),
            f'{name}/out',
            'participant',
            '--skip-bids-validation',
            '--participant-label',
            '0007',
            *options,
        ]
        usage = common.measure([sys.executable, '-c', PLAN_ONE, *task], cwd=name, stdout=subprocess.DEVNULL)
    if usage.code:
        raise SystemExit(f'planning ended with {usage.code}')
    return usage.cpu_s


def save_gpus(cores: int) -> None:
    """Put scans of the measured costs before cores and GPUs, for several seconds on the GPU."""
    measured = json.loads((common.RESULTS / 'participant.json').read_text())['scans']
    steps: dict[str, float] = json.loads((common.RESULTS / 'scaling_steps.json').read_text())['steps']
    spread = [item['CPU s'] for item in measured if item['follows'] == 'itself']
    after = sum(seconds for name, seconds in steps.items() if name in AFTER) / sum(steps.values())
    rng = np.random.default_rng(0)
    drawn = rng.choice(spread, MANY)
    rows = []
    for seconds in (1, 3, 10, 30):
        costs = [queueing.Cost(cpu * (1 - after), seconds, cpu * after) for cpu in drawn]
        ratio = statistics.mean(spread) / seconds
        needed = max(round(cores / ratio), 1)
        for gpus in sorted({max(needed // 2, 1), needed, needed + max(needed // 4, 1)}):
            found = queueing.simulate(costs, cores, gpus)
            rows.append({
                'seconds on a GPU': seconds, 'cores that one GPU serves': f'{ratio:.2g}', 'GPUs': gpus,
                'hours': f'{found.hours:.2f}', 'cores busy': f'{100 * found.cores_busy:.0f} %',
                'GPUs busy': f'{100 * found.gpus_busy:.0f} %',
            })  # fmt: skip
    text = (
        f'{MANY} scans before {cores} cores and some GPUs, simulated. CPU seconds are drawn from the single T1w runs on real '
        f'scans in `participant.json` (mean {statistics.mean(spread):.0f} s), {100 * after:.0f} % of them after harmonizing, as in '
        '`scaling_steps`. Seconds on a GPU are assumed, start of the process included: none was measured. One core is taken to do '
        'the work of a CPU second; waiting in the queue for other people is not in it.\n\n'
        + common.table(rows)
    )
    common.save('scaling_gpu', title='How many GPUs keep up with how many cores', text=text, seed=0,
                data={'rows': rows, 'CPU s': spread, 'share after': after})  # fmt: skip


#: Steps behind harmonizing.
AFTER = {
    'segment_after',
    'assess',
    'warp',
    'draw',
    'collect',
    'gather',
    'wait',
    'ds_preproc',
    'ds_harmonized',
    'ds_qc',
}


if __name__ == '__main__':
    main()
