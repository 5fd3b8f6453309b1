"""The data set as a run sees it, and what a container was given."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bidsharm.workflows.doctor.findings import Asked, Check, Finding, ok, problem, warning
from bidsharm.workflows.progress import counted

GROUP = 'BIDS App'
#: Files and seconds after which no more files of the data set are looked at.
MOST_FILES, MOST_SECONDS = 3000, 8.0


def container(root: Path = Path('/'), environment: Mapping[str, str] = os.environ) -> str:
    """Return ``apptainer``, ``podman`` or ``docker`` inside a container, and an empty string elsewhere."""
    if environment.get('APPTAINER_CONTAINER') or environment.get('SINGULARITY_CONTAINER'):
        return 'apptainer'
    if (root / 'run' / '.containerenv').exists():
        return 'podman'
    known = environment.get('BIDSHARM_CONTAINER') or (root / '.dockerenv').exists()
    return 'docker' if known else ''


def mounts(asked: Asked) -> Iterator[Finding]:
    """Tell what a container lacks."""
    kind = container()
    if not kind:
        yield ok('This is no container.')
        return
    option = '-B' if kind == 'apptainer' else '-v'
    data, out = asked.bids_dir or Path('/data'), asked.output_dir or Path('/out')
    lines = []
    if not is_mounted(data):
        lines.append(f'{option} /path/of/the/data:{data}:ro')
    if not is_mounted(out):
        lines.append(f'{option} /path/of/the/results:{out}')
    if not lines:
        yield ok(
            f'This is a container ({kind}), with folders of the machine at {data} and {out}.', container=kind
        )
    elif asked.bids_dir is None:
        yield warning(f'This is a container ({kind}), and it sees no data of the machine.',
                      f'Start it with {" ".join(lines)}, then: bidsharm-doctor {data} {out}.', container=kind)  # fmt: skip
    else:
        yield warning(
            f'This is a container ({kind}), and not all folders are those of the machine; what is written to others is lost with it.',
            f'Start it with {" ".join(lines)}.', container=kind,
        )  # fmt: skip


def is_mounted(path: Path) -> bool:
    """Say whether a path lies on another file system than the root of the container."""
    return any(os.path.ismount(place) for place in (path, *path.parents) if place != Path(place.anchor))


def data_set(asked: Asked) -> Iterator[Finding]:
    """Look at the folder of the data set."""
    root = asked.bids_dir
    if root is None:
        yield ok('No data set is given: bidsharm-doctor BIDS_DIR looks at it.')
        return
    if not root.is_dir():
        yield problem(
            f'There is no folder {root}.', 'Correct BIDS_DIR; in a container, mount it (docs/containers.md).'
        )
        return
    try:
        subjects = sum(1 for place in root.iterdir() if place.name.startswith('sub-') and place.is_dir())
    except OSError as error:
        yield problem(
            f'The data set {root} cannot be read ({error.strerror}).',
            'Check its permissions, and the --user of a container.',
        )
        return
    if not subjects:
        yield problem(f'There is no sub-* folder in {root}.', 'Give the folder that holds the sub-* folders.')
    if not (root / 'dataset_description.json').is_file():
        yield warning(
            f'There is no dataset_description.json in {root}.', 'BIDS asks for one; bidsharm goes on without.'
        )
    elif not _reads(root / 'dataset_description.json'):
        yield warning(
            f'dataset_description.json in {root} is not valid JSON, or cannot be read.',
            'Repair it; bidsharm goes on without.',
        )
    access = 'can be written, and never is' if os.access(root, os.W_OK) else 'is read-only, which is fine'
    if subjects:
        yield ok(
            f'The data set {root} has {counted(subjects, "sub-* folder")} and {access}.', subjects=subjects
        )


def _reads(file: Path) -> bool:
    from bidsharm.bids.dataset import read_json

    return bool(read_json(file))


@dataclass
class Sample:
    """What some files of a data set are like.

    Parameters
    ----------
    files
        How many were looked at.
    broken, leaving, unreadable
        Links that lead nowhere, links that lead out of the data set, and files that may not be read.
    """

    files: int = 0
    broken: int = 0
    leaving: int = 0
    unreadable: int = 0


def sample(root: Path, *, most: int = MOST_FILES, seconds: float = MOST_SECONDS) -> Sample:
    """Look at files in ``anat`` folders, subject by subject in random order, until there are enough."""
    found, until, real = Sample(), time.monotonic() + seconds, root.resolve()
    subjects = sorted(root.glob('sub-*'))
    random.Random(0).shuffle(subjects)
    for subject in subjects:
        for pattern in ('anat/*', 'ses-*/anat/*'):
            for file in subject.glob(pattern):
                if found.files >= most or time.monotonic() > until:
                    return found
                found.files += 1
                target = file.resolve()
                if not target.exists():
                    found.broken += 1
                elif not os.access(target, os.R_OK):
                    found.unreadable += 1
                if target.exists() and real not in target.parents:
                    found.leaving += 1
    return found


def files(asked: Asked) -> Iterator[Finding]:
    """Look at some files of the data set."""
    if asked.bids_dir is None or not asked.bids_dir.is_dir():
        yield ok('There is no data set to look at.')
        return
    yield from judge_files(sample(asked.bids_dir), inside=bool(container()))


def judge_files(found: Sample, *, inside: bool) -> Iterator[Finding]:
    """Judge some files of a data set.

    Parameters
    ----------
    found
        What they are like.
    inside
        Whether this is a container, where links out of the data set lead nowhere unless their targets are mounted, too.
    """
    if found.broken:
        yield warning(
            f'{found.broken} of {found.files} files in anat folders are links that lead nowhere.',
            'Get their content: datalad get sub-*; in a container, mount what they point at at the same path.' if inside
            else 'Get their content: datalad get sub-*.', **vars(found),
        )  # fmt: skip
    if found.unreadable:
        yield warning(f'{found.unreadable} of {found.files} files in anat folders may not be read.',
                      'Check their permissions, and the --user of a container.', **vars(found))  # fmt: skip
    if found.leaving and not inside:
        yield ok(f'{found.leaving} of {found.files} files are links out of the data set; a container would need their targets, too.',
                 **vars(found))  # fmt: skip
    if not found.files:
        yield warning('There are no files in anat folders.', 'Scans lie in sub-*/anat or sub-*/ses-*/anat.')
    elif not (found.broken or found.unreadable):
        yield ok(f'{counted(found.files, "file")} in anat folders can be read.', **vars(found))


CHECKS = (
    Check(GROUP, 'container', mounts),
    Check(GROUP, 'data set', data_set, limit_s=30, stuck='The file system of the data set does not answer.'),
    Check(GROUP, 'files', files, limit_s=30, stuck='The file system of the data set does not answer.'),
)
