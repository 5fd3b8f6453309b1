"""Python, the libraries, ANTs, and programs that may be there."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata

from bidsharm.workflows.doctor.findings import Asked, Check, Finding, ok, problem, warning
from bidsharm.workflows.doctor.probe import Unanswered, ask

from bidsharm import __version__

#: Libraries whose versions are told; results depend on them.
NAMED = (
    'torch',
    'nipype',
    'antspyx',
    'deepbet',
    'numpy',
    'scipy',
    'nibabel',
    'nilearn',
    'pybids',
    'templateflow',
)

GROUP = 'Software'


def versions(asked: Asked) -> Iterator[Finding]:
    """Tell the versions that results depend on."""
    found = {'bidsharm': __version__, 'Python': platform.python_version(), 'system': platform.platform(terse=True),
             'processor': platform.machine()}  # fmt: skip
    found |= {name: _installed(name) or 'missing' for name in NAMED}
    yield ok(', '.join(f'{name} {version}' for name, version in found.items()) + '.', **found)


def python(asked: Asked) -> Iterator[Finding]:
    """Compare Python with what bidsharm asks for."""
    from packaging.specifiers import SpecifierSet

    try:
        needed = str(metadata.metadata('bidsharm').json.get('requires_python') or '>=3.11')
    except metadata.PackageNotFoundError:
        yield warning(
            'bidsharm runs from a folder and is not installed, so its commands and its needs are not known.',
            'Install it: pip install -c constraints.txt .',
        )
        return
    found = platform.python_version()
    if SpecifierSet(needed).contains(found, prereleases=True):
        yield ok(f'Python {found} is among the versions that bidsharm supports ({needed}).')
    else:
        yield problem(
            f'Python {found} is not supported.', f'Use Python {needed}.', found=found, needed=needed
        )


def packages(asked: Asked) -> Iterator[Finding]:
    """Compare the installed libraries with what bidsharm asks for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires('bidsharm') or []]
    except metadata.PackageNotFoundError:
        yield warning(
            'What bidsharm needs is not known, because it is not installed.',
            'pip install -c constraints.txt .',
        )
        return
    wanted = [item for item in wanted if item.marker is None or item.marker.evaluate({'extra': ''})]
    wrong = 0
    for item in wanted:
        found = _installed(item.name)
        if found and item.specifier.contains(found, prereleases=True):
            continue
        wrong += 1
        state = f'{item.name} {found} is too old or too new' if found else f'{item.name} is not installed'
        yield problem(
            f'{state}; {item.specifier} is needed.',
            f"Install it: pip install -c constraints.txt '{item.name}{item.specifier}'.",
            package=item.name, found=found, needed=str(item.specifier),
        )  # fmt: skip
    if not wrong:
        yield ok(f'All {len(wanted)} libraries are there in versions that bidsharm supports.')


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def libraries(asked: Asked) -> Iterator[Finding]:
    """Import what every run imports."""
    advice = 'Install it again with the versions of constraints.txt: pip install --force-reinstall -c constraints.txt NAME.'
    try:
        broken = ask('libraries', limit_s=60)['broken']
    except Unanswered as error:
        yield problem(f'Importing the libraries {error}.', 'Install bidsharm anew in an empty environment.')
        return
    for name, why in broken.items():
        yield problem(f'{name} cannot be imported ({why}).', advice, library=name)
    if not broken:
        yield ok('The libraries can be imported together.')


def ants(asked: Asked) -> Iterator[Finding]:
    """Load ANTs as a run does."""
    from bidsharm.interfaces.antspyx import TOOLS

    try:
        version = ask('ants', limit_s=30)['version']
    except Unanswered as error:
        yield problem(
            f'ANTs cannot be used: its library {error}.', 'Install antspyx again, or put the ANTs programs on the PATH.'
        )  # fmt: skip
        return
    there = [tool for tool in TOOLS if shutil.which(tool)]
    if there and len(there) < len(TOOLS):
        missing = ', '.join(sorted(set(TOOLS) - set(there)))
        yield warning(
            f'Of ANTs only {", ".join(there)} is on the PATH, so {version} is used instead.',
            f'Add {missing} to the PATH, or leave it so.', found=there,
        )  # fmt: skip
    elif version == 'ANTs (unknown version)':
        yield warning('The ANTs programs are on the PATH, but antsRegistration does not tell its version.',
                      'Check that they run: antsRegistration --version.')  # fmt: skip
    else:
        yield ok(f'{version} does bias correction and registration.', version=version)


def validator(asked: Asked) -> Iterator[Finding]:
    """Find the BIDS validator."""
    from bidsharm.bids.validation import find_validator

    program = find_validator()
    if program is None:
        yield warning(
            'The BIDS validator is not installed; data sets are not validated.',
            'pip install "bidsharm[validate]", or pass --skip-bids-validation.',
        )
        return
    try:
        done = subprocess.run(
            [program, '--version'], capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL
        )  # fmt: skip
        said, works = done.stdout + done.stderr, done.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        said, works = str(error), False
    if works:
        found = re.search(r'\d+\.\d+[\w.]*', said)
        yield ok(f'The BIDS validator {found[0] if found else ""} answers.'.replace('  ', ' '), path=program)
    else:
        yield warning(
            f'The BIDS validator does not run ({(said.strip().splitlines() or ["it said nothing"])[-1][:200]}).',
            'Install it again, or pass --skip-bids-validation.', path=program,
        )  # fmt: skip


def optional(asked: Asked) -> Iterator[Finding]:
    """Tell what is not needed."""
    drawn = (
        'Graphviz is there'
        if shutil.which('dot')
        else 'Graphviz is not there, so --write-graph draws no picture'
    )
    yield ok(
        f'{drawn}. No network is needed, except to fetch templates once.', graphviz=bool(shutil.which('dot'))
    )


CHECKS = (
    Check(GROUP, 'versions', versions),
    Check(GROUP, 'Python', python),
    Check(GROUP, 'packages', packages),
    Check(GROUP, 'imports', libraries, limit_s=70),
    Check(GROUP, 'ANTs', ants, limit_s=40),
    Check(GROUP, 'BIDS validator', validator, limit_s=30),
    Check(GROUP, 'optional', optional),
)
