"""Data sets that are bad as a whole, and what must happen to them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from shared import Part, Row, app, checksums, heads

OPTIONS = ('--skip-bids-validation', '--offline')
#: What runs the app with these arguments.
Start = Callable[..., subprocess.CompletedProcess[str]]
#: A name of a folder that no program should mind, and no shell may run.
SHELL_NAME = 'my data; $(touch pwned) `touch pwned` \'ünï "日本" & *'


@dataclass(frozen=True)
class Case:
    """A kind of bad data set.

    Parameters
    ----------
    name
        In a few words.
    make
        Writes the data set into an empty folder.
    happens
        What must happen, for the table.
    code
        Exit code.
    says
        Patterns of what must be printed.
    silent
        Patterns of what must not be printed.
    options
        Of the command line.
    folder
        Name of the folder.
    """

    name: str
    make: Callable[[Path], None]
    happens: str
    says: tuple[str, ...]
    code: int = 0
    silent: tuple[str, ...] = ()
    options: tuple[str, ...] = ('--harmonizer', 'zscore')
    folder: str = 'bids'


def tiny(root: Path, *names: str, ending: str = '.nii.gz', folder: str = '', **sidecar: object) -> None:
    """Write images of a few voxels under their BIDS names."""
    image = nib.Nifti1Image(np.arange(4096, dtype=np.int16).reshape(16, 16, 16), np.diag([10.0, 10, 10, 1]))
    (root / 'dataset_description.json').write_text('{"Name": "tiny", "BIDSVersion": "1.10.0"}')
    for name in names:
        parts = dict(part.split('-', 1) for part in name.split('_')[:-1])
        session = f'ses-{parts["ses"]}' if 'ses' in parts else ''
        anat = root / (folder or f'sub-{parts["sub"]}') / session / 'anat'
        anat.mkdir(parents=True, exist_ok=True)
        image.to_filename(anat / f'{name}{ending}')
        if sidecar:
            (anat / f'{name}.json').write_text(json.dumps(sidecar))


def _names(*names: str) -> Callable[[Path], None]:
    return lambda root: tiny(root, *names)


def _table(content: str | bytes, *subjects: str) -> Callable[[Path], None]:
    """Return what writes a data set with a participants.tsv of this content."""

    def make(root: Path) -> None:
        tiny(root, *(f'sub-{subject}_T1w' for subject in subjects or ('01', '02')))
        (root / 'participants.tsv').write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def _duplicates(root: Path) -> None:
    tiny(root, 'sub-01_T1w', 'sub-02_T1w')
    tiny(root, 'sub-01_T1w', ending='.nii')


def _empty_folders(root: Path) -> None:
    tiny(root)
    (root / 'sub-01' / 'anat').mkdir(parents=True)
    (root / 'sub-02').mkdir()


def _sites(count: int, each: int) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        subjects = [f'{site}x{number}' for site in range(count) for number in range(each)]
        tiny(root, *(f'sub-{subject}_T1w' for subject in subjects))
        rows = ''.join(f'sub-{subject}\tsite{subject.split("x")[0]}\n' for subject in subjects)
        (root / 'participants.tsv').write_text(f'participant_id\tsite\n{rows}')

    return make


def _thousand(root: Path) -> None:
    tiny(root, *(f'sub-{number:04}_T1w' for number in range(1000)))


def _no_description(root: Path) -> None:
    tiny(root, 'sub-01_T1w')
    (root / 'dataset_description.json').unlink()


def _sidecars(root: Path) -> None:
    tiny(root, 'sub-01_T1w', 'sub-02_T1w')
    (root / 'T1w.json').write_text('{"Manufacturer": "GE", ')
    (root / 'sub-01' / 'anat' / 'sub-01_T1w.json').write_text('[1, 2]')
    (root / 'sub-02' / 'anat' / 'sub-02_T1w.json').write_bytes(b'{"Manufacturer": "Philips \xff"}')


HOLES = (
    'sub-01_ses-a_T1w', 'sub-01_ses-a_T2w', 'sub-01_ses-b_T2w', 'sub-02_ses-b_T1w', 'sub-02_ses-c_FLAIR', 'sub-03_ses-c_T2w',
)  # fmt: skip
ENTITIES = (
    'sub-01_T1w', 'sub-01_run-01_T1w', 'sub-01_run-02_T1w', 'sub-01_acq-hires_T1w', 'sub-01_acq-hires_rec-norm_T1w',
    'sub-01_acq-hires_rec-norm_run-2_T1w', 'sub-01_ce-gad_T1w', 'sub-01_echo-1_T1w',
)  # fmt: skip
ALL_CONTRASTS = ('--harmonizer', 'zscore', '--contrasts', 'T1w', 'T2w', 'FLAIR')
#: What the plan says of one scan: its name, its site, what it follows, what is to do.
LINE = r'│ {} +│ +{} +│'


def _line(name: str, site: str = 'unknown') -> str:
    return LINE.format(re.escape(name), re.escape(site))


CASES = (
    Case('no subject at all', lambda root: tiny(root), 'run refused', ('No .*T1w.* image was found',), code=3),
    Case('folders without scans', _empty_folders, 'run refused', ('No .*T1w.* image was found',), code=3),
    Case('an empty folder', lambda root: None, 'run refused', ('No .*T1w.* image was found',), code=3),
    Case('no dataset_description.json', _no_description, 'planned', (r'1 subject, 1 scan',)),
    Case(
        'duplicate names: .nii beside .nii.gz', _duplicates, 'left out; the others are planned',
        (r'1 subject, 1 scan\b', r'Left out: sub-01/anat/sub-01_T1w\.nii: ', r'Left out: sub-01/anat/sub-01_T1w\.nii\.gz: ', 'Keep one'),
        silent=(r'│ sub-01_T1w',),
    ),
    Case(
        'names that differ in case only: acq-A, acq-a', _names('sub-01_acq-A_T1w', 'sub-01_acq-a_T1w', 'sub-02_T1w'),
        'left out; the others are planned', ('1 subject, 1 scan', 'differ only in case', _line('sub-02_T1w')),
    ),
    Case(
        'labels that differ in case only: sub-A, sub-a', _names('sub-A_T1w', 'sub-a_T1w', 'sub-b_T1w'),
        'left out; the others are planned', ('1 subject, 1 scan', 'differ only in case', _line('sub-b_T1w')),
    ),
    Case(
        'runs, acqs, recs, echoes', _names(*ENTITIES), 'planned, each with outputs of its own',
        ('1 subject, 8 scans', *(rf'{name.removesuffix("_T1w")}_desc-harmonized_T1w\.nii\.gz' for name in ENTITIES)),
    ),
    Case(
        'sessions with holes', _names(*HOLES), 'planned; a session without T1w follows another',
        ('3 subjects, 6 scans', r'sub-01_ses-b_T2w[^\n]*│ sub-01_ses-a_T1w', r'sub-02_ses-c_FLAIR[^\n]*│ sub-02_ses-b_T1w',
         r'sub-03_ses-c_T2w[^\n]*│ +│ to do'),
        options=ALL_CONTRASTS,
    ),
    Case('spaces, unicode and shell characters in the path', _names('sub-01_T1w'), 'planned', (_line('sub-01_T1w'),), folder=SHELL_NAME),
    Case(
        'a folder of another name than its scan', lambda root: tiny(root, 'sub-01_T1w', folder='sub-02'), 'run refused',
        ('not the BIDS name of a raw scan in this folder', 'sub-02/anat/sub-01_T1w'), code=3,
    ),
    Case(
        'a subject with a space and a quote in its name', _names("sub-0 1'_T1w", 'sub-02_T1w'), 'left out or not seen; the others are planned',
        ('1 subject, 1 scan', _line('sub-02_T1w')),
    ),
    Case('sidecars that are no JSON object', _sidecars, 'planned; the sites are unknown', (_line('sub-01_T1w'), _line('sub-02_T1w'))),
    Case(
        'participants.tsv with wrong columns', _table('name\twhere\nsub-01\tA\n'), 'planned; the sites are unknown',
        (_line('sub-01_T1w'), _line('sub-02_T1w')),
    ),
    Case(
        'participants.tsv with wrong columns, and --site asks for one', _table('participant_id\twhere\nsub-01\tA\nsub-02\tB\n'), 'run refused',
        ('No scan has a value of "site"', 'where'), code=2, options=('--harmonizer', 'zscore', '--site', 'site'),
    ),
    Case(
        'participants.tsv with a BOM', _table('\ufeffparticipant_id\tsite\r\nsub-01\tA\r\nsub-02\tB\r\n'), 'planned; the sites are known',
        (_line('sub-01_T1w', 'A'), _line('sub-02_T1w', 'B')),
    ),
    Case(
        'participants.tsv with duplicate rows', _table('participant_id\tsite\nsub-01\tA\nsub-01\tB\nsub-02\tB\n'), 'planned; the first row counts',
        (_line('sub-01_T1w', 'A'), _line('sub-02_T1w', 'B')),
    ),
    Case(
        'participants.tsv without a subject', _table('participant_id\tsite\nsub-01\tA\nsub-09\tB\n'), 'planned; the site is unknown',
        (_line('sub-01_T1w', 'A'), _line('sub-02_T1w')),
    ),
    Case(
        'participants.tsv that is no table', _table(b'\x00\xff\xfe\x00PK\x03\x04' * 50), 'planned; the sites are unknown',
        (_line('sub-01_T1w'), _line('sub-02_T1w')),
    ),
    Case(
        'one subject per site', _sites(4, 1), 'planned; learnt from all sites',
        ('4 subjects, 4 scans', *(f'learns from sub-{site}x0_T1w' for site in range(4))), options=('--harmonizer', 'nyul'),
    ),
    Case(
        'one subject per site, a site as the target', _sites(4, 1), 'planned; learnt from its one scan',
        ('4 subjects, 4 scans', 'learns from sub-2x0_T1w'), silent=('learns from sub-1x0',),
        options=('--harmonizer', 'nyul', '--target', 'site2'),
    ),
    Case('one site', _sites(1, 4), 'planned', ('4 subjects, 4 scans', 'learns from sub-0x3_T1w'), options=('--harmonizer', 'nyul')),
    Case(
        'a single scan, for a method that learns', _sites(1, 1), 'run refused', ('nyul', 'needs|few|least'), code=2,
        options=('--harmonizer', 'nyul'),
    ),
    Case('1,000 subjects', _thousand, 'planned', ('1000 subjects, 1000 scans', _line('sub-0999_T1w'))),
)  # fmt: skip


def plan(case: Case, work: Path, start: Start = app) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Plan a case with ``--dry-run`` in an empty folder; return how it ended, and what is wrong with that."""
    bids, out = work / case.folder, work / 'out'
    bids.mkdir(parents=True)
    case.make(bids)
    before = checksums(bids)
    done = start(bids, out, 'participant', '--dry-run', *OPTIONS, *case.options)
    said = done.stdout + done.stderr
    wrong = [] if done.returncode == case.code else [f'exit code {done.returncode}']
    flat = ' '.join(said.split())
    wrong += [
        f'not said: {text}' for text in case.says if not re.search(text, said) and not re.search(text, flat)
    ]
    wrong += [f'said: {text}' for text in case.silent if re.search(text, said)]
    if checksums(bids) != before:
        wrong.append('the data set changed')
    if any(work.rglob('pwned')):
        wrong.append('a name was run by a shell')
    return done, wrong


def run_all(part: Part) -> None:
    """Plan every case, and run those whose result matters."""
    for number, case in enumerate(CASES):
        work = part.work / f'set{number}'
        started = time.monotonic()
        done, wrong = plan(case, work)
        seconds = time.monotonic() - started
        message = '; '.join(wrong) or _said(done) if case.code or wrong else ''
        what = f'{case.name} ({seconds:.0f} s)' if seconds > 30 else case.name
        part.add(
            Row('data set', what, case.happens if not wrong else 'not as it must be', message, not wrong)
        )
        shutil.rmtree(work)
    _run_with_hostile_path(part)
    _run_one_subject_per_site(part)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return ' '.join(lines[-3:])


def _run(part: Part, what: str, bids: Path, options: Sequence[object]) -> None:
    out = bids.parent / 'results'
    done = app(
        bids,
        out,
        'participant',
        *OPTIONS,
        '--sloppy',
        '--nprocs',
        2,
        '--omp-nthreads',
        1,
        *options,
        cwd=bids.parent,
    )
    images = list(out.rglob('*_desc-harmonized_T1w.nii.gz'))
    finite = all(np.isfinite(np.asarray(nib.load(path).dataobj)).all() for path in images)
    scans = len(list(bids.glob('sub-*/**/*_T1w.nii.gz')))
    ok = done.returncode == 0 and len(images) == scans > 0 and finite and not any(part.work.rglob('pwned'))
    part.add(
        Row(
            'data set',
            what,
            f'{len(images)} of {scans} scans done',
            '' if ok else _said(done),
            ok,
            count=scans,
        )
    )


def _run_with_hostile_path(part: Part) -> None:
    work = part.work / 'shell'
    work.mkdir()
    bids = heads(work / SHELL_NAME)
    _run(
        part,
        'spaces, unicode and shell characters in the path (run)',
        bids,
        ('--harmonizer', 'zscore', '-w', work / f'{SHELL_NAME} w'),
    )


def _run_one_subject_per_site(part: Part) -> None:
    """Give each of two scanners one person, and learn a common scale from them."""
    work = part.work / 'single'
    work.mkdir()
    bids = heads(work / 'bids', subjects=2, scanners=('northA', 'southB'), resolution=3.0)
    for folder in (bids / 'sub-01' / 'ses-southB', bids / 'sub-02' / 'ses-northA'):
        shutil.rmtree(folder)
    _run(part, 'one subject per site (run)', bids, ('--harmonizer', 'nyul'))
