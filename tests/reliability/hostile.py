"""Files that want to harm: pages, links, pipes, bombs, bundles and settings. Nothing may be executed, and no file may lead outside.

A case makes its files in a folder, does what the program does with them, and returns what happened, what the user is told, and
whether that is what must happen. Cases that take seconds are in the tests; :func:`run` also runs whole commands, and bombs in
processes with a limit of memory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from shared import CannotRun, Part, Row, app, checksums, heads

#: What must not be found anywhere outside of the file that holds it.
SECRET = 'no-page-and-no-message-may-say-this'
HOST = 'evil.example.org'
#: What a page would run if it let it: the title changes, an element appears, another machine is asked.
PAYLOAD = (
    '"\'><img id="pwned" src="x" onerror="document.title=\'pwned\'"><script>document.title="pwned";'
    'document.body.appendChild(Object.assign(document.createElement("b"),{id:"pwned"}))</script>'
    f'<svg onload="document.title=\'pwned\'"></svg><iframe src="http://{HOST}/"></iframe><img src="http://{HOST}/a.png">'
    f'<link rel="stylesheet" href="http://{HOST}/a.css"><a id="pwned" href="javascript:document.title=1">x</a>'
    f'<meta http-equiv="refresh" content="0;url=http://{HOST}/">' + '{{ 7*7 }}{% raw %}</title></style>'
)
#: Seconds after which something counts as hung, and bytes of memory in the processes that read bombs.
LIMIT_S, MEMORY = 60, 6_000_000_000

Outcome = tuple[str, str, bool]


@dataclass(frozen=True)
class Case:
    """One hostile thing; ``check`` gets an empty folder."""

    name: str
    check: Callable[[Path], Outcome]


CASES: list[Case] = []


def case(name: str) -> Callable[[Callable[[Path], Outcome]], Callable[[Path], Outcome]]:
    """Put a check on the list."""

    def keep(check: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
        CASES.append(Case(name, check))
        return check

    return keep


@contextlib.contextmanager
def bounded(seconds: float = LIMIT_S) -> Iterator[None]:
    """Raise ``TimeoutError`` where something waits, as for the other end of a pipe."""

    def late(*_: object) -> None:
        raise TimeoutError('it waited')

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(action: Callable[[], object], *words: str) -> Outcome:
    """Expect an error of the package that says some words, and no secret."""
    from bidsharm.errors import BidsharmError

    try:
        with bounded():
            found = action()
    except BidsharmError as error:
        said = str(error)
        return 'refused', said, all(word in said for word in words) and SECRET not in said
    except Exception as error:  # noqa: BLE001 - that is what must not happen
        return f'{type(error).__name__} came out', str(error), False
    return 'taken', repr(found)[:200], False


# --- A small data set -------------------------------------------------------------------------------------


def write_scan(path: Path) -> Path:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(1).integers(0, 1000, (10, 11, 12)).astype(np.int16)
    nib.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])).to_filename(path)
    return path


def data_set(folder: Path) -> Path:
    """Write a data set of one good scan, sub-09, and return its root; beside it lies a secret."""
    root = folder / 'bids'
    write_scan(root / 'sub-09' / 'anat' / 'sub-09_T1w.nii.gz')
    (root / 'dataset_description.json').write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    outside = folder / 'outside'
    write_scan(outside / 'anat' / 'sub-01_T1w.nii.gz')
    (outside / 'secret.json').write_text(json.dumps({'Manufacturer': SECRET, 'Name': SECRET}))
    (outside / 'secret.tsv').write_text(f'participant_id\tsite\nsub-09\t{SECRET}\n')
    return root


def select(root: Path, **more: Any) -> Any:
    """Return what a run would do with a data set."""
    from bidsharm.bids.query import select_scans
    from bidsharm.settings import Settings

    return select_scans(Settings(root, root.parent / 'out', **more))


def left_out(root: Path, name: str, words: str, **more: Any) -> Outcome:
    """Expect that a scan or folder is left out by name and the good scan stays."""
    try:
        with bounded():
            found = select(root, **more)
    except Exception as error:  # noqa: BLE001 - that is what must not happen
        return f'{type(error).__name__} came out', str(error), False
    told = [str(error) for error in found.left_out if error.where == name]
    good = [scan.name for scan in found.scans] == ['sub-09_T1w'] and len(told) == 1 and words in told[0]
    return ('left out, the others go on' if good else 'wrong'), ' '.join(told), good


# --- Links ------------------------------------------------------------------------------------------------


@case('a scan is a link out of the data set')
def _scan_link(folder: Path) -> Outcome:
    root = data_set(folder)
    link = root / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz'
    link.parent.mkdir(parents=True)
    link.symlink_to(folder / 'outside/anat/sub-01_T1w.nii.gz')
    outcome = left_out(root, 'sub-01/anat/sub-01_T1w.nii.gz', '--follow-links')
    followed = [scan.name for scan in select(root, follow_links=True).scans]
    return *outcome[:2], outcome[2] and followed == ['sub-01_T1w', 'sub-09_T1w']


@case('folders of a subject, a session and scans are links out of the data set')
def _folder_links(folder: Path) -> Outcome:
    root, good, said = data_set(folder), True, ''
    outside = folder / 'outside'
    shutil.copytree(outside / 'anat', outside / 'ses' / 'anat')
    (outside / 'ses/anat/sub-01_T1w.nii.gz').rename(outside / 'ses/anat/sub-01_ses-a_T1w.nii.gz')
    for place, target in (
        ('sub-01', outside),
        ('sub-01/ses-a', outside / 'ses'),
        ('sub-01/anat', outside / 'anat'),
    ):
        link = root / place
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        _, said, right = left_out(root, place, '--follow-links')
        good = good and right and len(select(root, follow_links=True).scans) == 2
        link.unlink()
    return 'left out, the others go on', said, good


@case('links of DataLad into .git/annex, of the data set and of the repository above it')
def _annex(folder: Path) -> Outcome:
    root = data_set(folder)
    for number, git in enumerate((root, folder), start=1):
        key = write_scan(git / '.git/annex/objects/aa/bb/KEY/KEY.nii.gz')
        link = root / f'sub-0{number}' / 'anat' / f'sub-0{number}_T1w.nii.gz'
        link.parent.mkdir(parents=True)
        link.symlink_to(os.path.relpath(key, link.parent))
    found = select(root)
    return (
        'read',
        '',
        [scan.name for scan in found.scans] == ['sub-01_T1w', 'sub-02_T1w', 'sub-09_T1w']
        and not found.left_out,
    )


@case('links of folders in circles, and a folder that is a link to /')
def _circles(folder: Path) -> Outcome:
    root = data_set(folder)
    for name, target in (('sub-09/a', '..'), ('sub-09/b', '.'), ('sub-09/anat/c', '../..'), ('sub-08', '/')):
        (root / name).symlink_to(target)
    _, said, good = left_out(root, 'sub-08', '--follow-links')
    (root / 'sub-08').unlink()
    with bounded():
        followed = [scan.name for scan in select(root, follow_links=True).scans]
    return 'not looked into', said, good and followed == ['sub-09_T1w']


@case('a sidecar is a link out of the data set')
def _sidecar_link(folder: Path) -> Outcome:
    root = data_set(folder)
    (root / 'T1w.json').symlink_to(folder / 'outside' / 'secret.json')
    (scan,) = select(root).scans
    said = ' '.join(scan.warnings)
    good = not scan.metadata and '--follow-links' in said and SECRET not in said
    return (
        'not read, with a warning',
        said,
        good and 'Manufacturer' in select(root, follow_links=True).scans[0].metadata,
    )


@case('participants.tsv is a link out of the data set')
def _table_link(folder: Path) -> Outcome:
    root = data_set(folder)
    (root / 'participants.tsv').symlink_to(folder / 'outside' / 'secret.tsv')
    (scan,) = select(root).scans
    said = ' '.join(scan.warnings)
    good = scan.site == 'unknown' and '--follow-links' in said and SECRET not in said
    return (
        'not read, with a warning',
        said,
        good and select(root, follow_links=True).scans[0].site != 'unknown',
    )


@case('dataset_description.json is a link out of the data set')
def _description_link(folder: Path) -> Outcome:
    root = data_set(folder)
    (root / 'dataset_description.json').unlink()
    (root / 'dataset_description.json').symlink_to(folder / 'outside' / 'secret.json')
    return refused(lambda: select(root), '--follow-links')


@case('the BIDS folder itself is a link')
def _root_link(folder: Path) -> Outcome:
    root = data_set(folder)
    (folder / 'link').symlink_to(root)
    return 'read', '', [scan.name for scan in select(folder / 'link').scans] == ['sub-09_T1w']


@case('a mask of --derivatives is a link out of that folder')
def _derivative_link(folder: Path) -> Outcome:
    from bidsharm.bids.derivatives import find_precomputed

    root = data_set(folder)
    place = folder / 'fmriprep' / 'sub-09' / 'anat'
    place.mkdir(parents=True)
    (place / 'sub-09_desc-brain_mask.nii.gz').symlink_to(folder / 'outside/anat/sub-01_T1w.nii.gz')
    (scan,) = select(root).scans
    given = {'fmriprep': folder / 'fmriprep'}
    found = find_precomputed(scan, given, 'x')
    followed = find_precomputed(scan, given, 'x', follow_links=True)
    return (
        'not used, with a warning',
        ' '.join(found.warnings),
        not found.files and bool(followed.brain_mask) and len(found.warnings) == 1,
    )


@case('logs, models, a subject or its figures in OUTPUT_DIR are links out of it')
def _output_links(folder: Path) -> Outcome:
    from bidsharm.bids.dataset import refuse_links_out

    said, good = '', True
    for name in ('logs', 'models', 'figures', 'sub-09', 'sub-09/ses-a', 'sub-09/anat', 'sub-09/figures'):
        out = folder / name.replace('/', '-')
        (out / name).parent.mkdir(parents=True)
        (folder / 'elsewhere').mkdir(exist_ok=True)
        (out / name).symlink_to(folder / 'elsewhere')
        places = ('sub-09/anat', 'sub-09/ses-a/anat', 'sub-09/figures')
        _, said, right = refused(lambda out=out, places=places: refuse_links_out(out, places), name)  # type: ignore[misc]
        good = good and right
    return 'run refused', said, good


# --- Names ------------------------------------------------------------------------------------------------


@case('names with HTML, commands, .., escape sequences of terminals, line ends, and bytes that are not UTF-8')
def _names(folder: Path) -> Outcome:
    root = data_set(folder)
    names = [b'sub-01_acq-<img src=x onerror=alert(1)>_T1w.nii.gz', b'sub-01_acq-$(touch pwned)_T1w.nii.gz', b'sub-01_acq-.._T1w.nii.gz',
             b'sub-01_acq-\x1b[31m_T1w.nii.gz', b'sub-01_acq-\n_T1w.nii.gz', b'sub-01_acq-\xff_T1w.nii.gz']  # fmt: skip
    place = os.path.join(os.fsencode(root), b'sub-01', b'anat')
    os.makedirs(place)
    for name in names:
        Path(os.fsdecode(os.path.join(place, name))).write_bytes(b'x')
    Path(os.fsdecode(os.path.join(os.fsencode(root), b'sub-\xfe'))).mkdir()
    found = select(root)
    said = [str(error) for error in found.left_out]
    good = len(said) == len(names) and all(text.isprintable() for text in said)
    return (
        'left out, the others go on',
        said[-1],
        good and [scan.name for scan in found.scans] == ['sub-09_T1w'],
    )


@case('.. and / in sidecars and tables as site, subject and scanner')
def _traversal(folder: Path) -> Outcome:
    root = data_set(folder)
    (root / 'T1w.json').write_text(
        json.dumps({'Manufacturer': '../../x', 'StationName': '/etc/passwd', 'IntendedFor': '../../x'})
    )
    (root / 'participants.tsv').write_text('participant_id\tsite\nsub-09\t../../../x\nsub-../../x\ty\n')
    sites = [select(root).scans[0].site, select(root, site='site').scans[0].site]
    return 'read', ', '.join(sites), all('/' not in site for site in sites) and not (folder / 'x').exists()


# --- What is no file --------------------------------------------------------------------------------------


def _special(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    elif kind == 'folder':
        path.mkdir()
    else:
        with contextlib.chdir(path.parent), contextlib.closing(socket.socket(socket.AF_UNIX)) as opened:
            opened.bind(path.name)


def _special_scan(kind: str) -> Callable[[Path], Outcome]:
    def check(folder: Path) -> Outcome:
        root = data_set(folder)
        _special(root / 'sub-01/anat/sub-01_T1w.nii.gz', kind)
        words = {'folder': 'folder'}.get(kind, 'pipe')
        return left_out(root, 'sub-01/anat/sub-01_T1w.nii.gz', words, follow_links=True)

    return check


def _special_text(kind: str, name: str) -> Callable[[Path], Outcome]:
    def check(folder: Path) -> Outcome:
        root = data_set(folder)
        _special(root / name, kind)
        if name == 'dataset_description.json':
            return refused(lambda: select(root, follow_links=True), 'cannot be read')
        with bounded():
            (scan,) = select(root, follow_links=True).scans
        return 'not read, with a warning', ' '.join(scan.warnings), len(scan.warnings) == 1

    return check


for _kind in ('pipe', 'device', 'socket', 'folder'):
    CASES.append(Case(f'a scan is a {_kind}', _special_scan(_kind)))
    for _name in ('T1w.json', 'participants.tsv', 'dataset_description.json'):
        CASES.append(Case(f'{_name} is a {_kind}', _special_text(_kind, _name)))


def _readers(path: Path) -> dict[str, Callable[[], object]]:
    """Return what reads a file that the user names, by kind of file."""
    from bidsharm.workflows.engine import load_plugin

    from bidsharm.bids.evaluation_input import _read_scans
    from bidsharm.bids.query import read_filter_file
    from bidsharm.harmonizers.iguane_import import read_keras
    from bidsharm.imaging.grids import load_checked
    from bidsharm.settings import from_dict, load_values
    from bidsharm.simulation.protocols import read_scanners

    return {
        'settings.toml': lambda: from_dict({**load_values(path), 'bids_dir': path, 'output_dir': path}),
        'filter.json': lambda: read_filter_file(path),
        'plugin.yml': lambda: load_plugin(path),
        'scanners.json': lambda: read_scanners(path),
        'scanners.toml': lambda: read_scanners(path),
        'scans.tsv': lambda: _read_scans(path),
        'image.nii.gz': lambda: load_checked(path),
        'weights.h5': lambda: read_keras(path),
    }


def _special_named(kind: str) -> Callable[[Path], Outcome]:
    def check(folder: Path) -> Outcome:
        said, good = '', True
        for name in _readers(folder):
            _special(folder / name, kind)
            _, said, right = refused(_readers(folder / name)[name])
            good = good and right
        return 'refused', said, good

    return check


for _kind in ('pipe', 'device', 'socket', 'folder'):
    CASES.append(
        Case(
            f'settings, filter, plugin, scanners, tables, images, HDF5 that are a {_kind}',
            _special_named(_kind),
        )
    )


# --- Texts ------------------------------------------------------------------------------------------------

TEXTS: dict[str, bytes] = {
    'nested 100,000 deep': b'{"a": ' + b'[' * 100_000,
    'a number of 100,000 digits': b'{"a": ' + b'9' * 100_000 + b'}',
    'bytes': bytes(range(256)) * 10,
    'an unknown key': b'{"colour": 1}',
    'a list': b'[1, 2]',
    'null': b'null',
    'empty': b'',
}
TOML_TEXTS: dict[str, bytes] = {
    'nested 100,000 deep': b'a = ' + b'[' * 100_000,
    'a number of 100,000 digits': b'nprocs = ' + b'9' * 100_000,
    'bytes': bytes(range(256)) * 10,
    'an unknown key': b'colour = 1',
    'wrong types': b'nprocs = "../../x"',
    'a date for a number': b'nprocs = 2020-01-01',
}
YAML_TEXTS: dict[str, bytes] = {
    'nested 100,000 deep': b'[' * 100_000,
    'a number of 100,000 digits': b'plugin: ' + b'9' * 100_000,
    'bytes': bytes(range(256)) * 10,
    'an unknown key': b'plugin: MultiProc\ncolour: 1',
    'a list for a name': b'plugin: [1]\nplugin_args: x',
    'an impossible date': b'plugin: 2001-99-99',
}


def _bad_texts(name: str, texts: dict[str, bytes]) -> Callable[[Path], Outcome]:
    def check(folder: Path) -> Outcome:
        path, said = folder / name, ''
        for what, content in texts.items():
            path.write_bytes(content)
            happened, said, right = refused(_readers(path)[name])
            if not right:
                return f'{what}: {happened}', said, False
        return 'refused', said, True

    return check


for _name, _texts in (('settings.toml', TOML_TEXTS), ('filter.json', {k: v for k, v in TEXTS.items() if k not in ('a number of 100,000 digits',)}),
                      ('plugin.yml', YAML_TEXTS), ('scanners.json', TEXTS), ('scanners.toml', TOML_TEXTS)):  # fmt: skip
    CASES.append(Case(f'{_name}: {", ".join(_texts)}', _bad_texts(_name, _texts)))


@case('a sidecar of NaN, Infinity, 100,000 digits, halves of surrogate pairs and a key that is there twice')
def _odd_json(folder: Path) -> Outcome:
    root = data_set(folder)
    text = '{"a": NaN, "b": -Infinity, "c": 1e999, "d": %s, "e": "\\ud800", "EchoTime": 1, "EchoTime": 2}' % (
        '9' * 100_000
    )
    (root / 'T1w.json').write_text(text)
    (scan,) = select(root).scans
    json.dumps(scan.metadata, allow_nan=False, ensure_ascii=False).encode()
    wanted = {'a': None, 'b': None, 'c': None, 'd': None, 'e': '?', 'EchoTime': 2}
    return (
        'read; what is no number is missing, of two values the last counts',
        '',
        scan.metadata == wanted and not scan.warnings,
    )


def _sparse(path: Path, size: int, start: bytes = b'', end: bytes = b'') -> Path:
    """Write a file that takes no room on the disk."""
    with path.open('wb') as file:
        file.write(start)
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(end)
    return path


@case('a sidecar, a table and a description of 2 GB')
def _huge_texts(folder: Path) -> Outcome:
    root = data_set(folder)
    _sparse(root / 'T1w.json', 2_000_000_000, b'{"Manufacturer": "')
    _sparse(root / 'participants.tsv', 2_000_000_000, b'participant_id\tsite\nsub-09\t')
    with bounded():
        (scan,) = select(root).scans
    _sparse(root / 'dataset_description.json', 2_000_000_000, b'{"Name": "')
    _, _, right = refused(lambda: select(root), 'larger than')
    return (
        'not read, with a warning; a description: run refused',
        ' '.join(scan.warnings),
        right and len(scan.warnings) == 2,
    )


@case('settings, filter, plugin, scanners and tables of 2 GB')
def _huge_named(folder: Path) -> Outcome:
    said, good = '', True
    for name in _readers(folder):
        if name.endswith(('.json', '.toml', '.yml', '.tsv')):
            path = _sparse(folder / name, 2_000_000_000, b'# ')
            _, said, right = refused(_readers(path)[name], 'larger than')
            good = good and right
    return 'refused', said, good


@case('a plugin file that asks YAML for Python objects')
def _yaml_object(folder: Path) -> Outcome:
    from bidsharm.workflows.engine import load_plugin

    path = folder / 'plugin.yml'
    path.write_text(f'plugin: !!python/object/apply:os.system ["touch {folder}/pwned"]\n')
    happened, said, right = refused(lambda: load_plugin(path))
    return happened, said, right and not (folder / 'pwned').exists()


# --- Bundles and checkpoints ------------------------------------------------------------------------------


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch {self.path}',)


def bundle_at(folder: Path) -> Path:
    """Write a good bundle."""
    from bidsharm.harmonizers import bundle, registry
    from bidsharm.harmonizers.contract import Cohort, Scan

    rng = np.random.default_rng(0)
    scans = [
        Scan(
            rng.normal(500, 100, (16, 16, 16)).astype(np.float32),
            np.ones((16, 16, 16), bool),
            np.eye(4),
            'T1w',
            f'sub-0{n}_T1w',
            'A',
        )
        for n in (1, 2)
    ]
    method: Any = registry.get('nyul')()
    method.fit(Cohort(scans))
    bundle.save(method, folder / 'nyul')
    return folder / 'nyul'


def _with_tensors(place: Path, content: bytes, **card: Any) -> None:
    """Exchange the tensors of a bundle, with the digest that they have."""
    import hashlib

    (place / 'model.safetensors').write_bytes(content)
    known = json.loads((place / 'card.json').read_text())
    (place / 'card.json').write_text(
        json.dumps({**known, 'tensors_sha256': hashlib.sha256(content).hexdigest(), **card})
    )


def _arrays(place: Path, **changes: Any) -> bytes:
    from safetensors.numpy import load, save

    arrays = load((place / 'model.safetensors').read_bytes())
    for name in list(arrays):
        arrays[name] = changes['change'](arrays[name])
    return save(arrays)


@case(
    'bundles: wrong digest, shapes, types, NaN, no safetensors, a header of 2^62 bytes, other classes, modules and paths in the card'
)
def _bundles(folder: Path) -> Outcome:
    from bidsharm.harmonizers import bundle

    good = bundle_at(folder)
    changes: dict[str, Callable[[Path], None]] = {
        'wrong digest': lambda at: _append(at / 'model.safetensors', b'x'),
        'shapes': lambda at: _with_tensors(at, _arrays(at, change=lambda a: np.resize(a, (2, 2)))),
        'types': lambda at: _with_tensors(at, _arrays(at, change=lambda a: a.astype(np.int8))),
        'NaN': lambda at: _with_tensors(at, _arrays(at, change=lambda a: np.full_like(a, np.nan))),
        'no safetensors': lambda at: _with_tensors(at, b'nothing'),
        'header of 2^62 bytes': lambda at: _with_tensors(at, struct.pack('<Q', 2**62) + b'{}'),
        'a class': lambda at: _card(at, name='os.system'),
        'a module': lambda at: _card(at, name='../../evil:Evil'),
        'a path': lambda at: _card(at, name='/tmp/evil.py'),
        'settings of wrong types': lambda at: _card(at, settings={'target': {'a': [None]}, 'contrasts': 7}),
        'settings that are none': lambda at: _card(at, settings=[1]),
        'nested deep': lambda at: (at / 'card.json').write_bytes(b'[' * 100_000),
        'a huge card': lambda at: _sparse(at / 'card.json', 2_000_000_000) and None,
        'huge tensors': lambda at: _sparse(at / 'model.safetensors', 100_000_000_000) and None,
        'a pipe': lambda at: _special(at / 'model.safetensors', 'pipe'),
        'a link out': lambda at: _link_out(at / 'model.safetensors', folder / 'moved'),
    }  # fmt: skip
    said = ''
    for what, change in changes.items():
        at = folder / 'changed'
        shutil.rmtree(at, ignore_errors=True)
        shutil.copytree(good, at)
        change(at)
        happened, said, right = refused(lambda at=at: bundle.load(at))  # type: ignore[misc]
        if not right:
            return f'{what}: {happened}', said, False
    bundle.load(good)
    return 'refused', said, True


def _append(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)


def _card(place: Path, **changes: Any) -> None:
    known = json.loads((place / 'card.json').read_text())
    (place / 'card.json').write_text(json.dumps({**known, **changes}))


def _link_out(path: Path, target: Path) -> None:
    shutil.move(path, target)
    path.symlink_to(target)


@case('a pickle in place of the tensors, and pickles beside them')
def _pickles(folder: Path) -> Outcome:
    from bidsharm.harmonizers import bundle

    place, payload = bundle_at(folder), pickle.dumps(_Payload(folder / 'pwned'))
    for name in ('model.pt', 'model.pkl', 'card.pkl', 'model.npz', 'pytorch_model.bin', '__init__.py'):
        (place / name).write_bytes(payload)
    bundle.load(place)  # what lies beside is not looked at
    _with_tensors(place, payload)
    happened, said, right = refused(lambda: bundle.load(place))
    return happened, said, right and not (folder / 'pwned').exists()


@case('a training checkpoint that runs a command')
def _checkpoint(folder: Path) -> Outcome:
    import torch

    from bidsharm.training.records import CHECKPOINT, STATE, read_checkpoint

    buffer = io.BytesIO()
    torch.save({**dict.fromkeys(STATE, 0), 'best': _Payload(folder / 'pwned')}, buffer)
    said = ''
    for content in (buffer.getvalue(), pickle.dumps(_Payload(folder / 'pwned')), b'nothing', b''):
        (folder / CHECKPOINT).write_bytes(content)
        try:
            with bounded():
                read_checkpoint(folder, torch.device('cpu'))
        except ValueError as error:
            said = str(error)
        else:
            return 'taken', '', False
    _special(folder / CHECKPOINT, 'pipe')
    try:
        with bounded():
            read_checkpoint(folder, torch.device('cpu'))
    except ValueError:
        return 'refused', said, not (folder / 'pwned').exists()
    return 'taken', '', False


# --- Bombs ------------------------------------------------------------------------------------------------

#: Bombs by name, and the words of their error; empty where the image is read like any other.
BOMBS = {
    'a small image with 10 GB of zeros behind it, in gzip': '',
    'an extension of 2 GB, in gzip': 'extensions',
    'an extension of 2 GB, in a file with a hole': 'extensions',
    'a million extensions': 'extensions',
    'voxels that begin 1 GB after the start': 'after its start',
    'voxels that begin nowhere (NaN)': 'after its start',
    'a header that promises 30 TB': 'not plausible',
    'a header that promises 30 TB, in gzip': 'not plausible',
    'a header that promises 3 GB in a file of 500 bytes': 'cut off',
    'negative dimensions': '',
    'dimensions that overflow 64 bits': '',
}


def bomb(name: str, folder: Path) -> Path:
    """Write a bomb."""
    image = nib.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.diag([2.0, 2, 2, 1]))
    header = bytearray(image.to_bytes()[:352])
    body = image.to_bytes()[352:]
    zipped = 'gzip' in name or name == 'a million extensions'
    path, zeros = folder / f'bomb.nii{".gz" if zipped else ""}', 0
    if 'zeros' in name:
        zeros = 10_000_000_000
    elif 'extension' in name:
        header[348] = 1
        struct.pack_into('<f', header, 108, 352 + 16e6)
        body = (
            struct.pack('<ii', 2_000_000_000, 4)
            if 'million' not in name
            else struct.pack('<ii', 16, 4) + bytes(8)
        )
        body, zeros = (body * 1_000_000, 2000) if 'million' in name else (body, 2_100_000_000)
    elif '1 GB' in name:
        struct.pack_into('<f', header, 108, 1e9)
    elif 'NaN' in name:
        struct.pack_into('<f', header, 108, float('nan'))
    elif '30 TB' in name:
        struct.pack_into('<8h', header, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    elif '3 GB' in name:
        struct.pack_into('<8h', header, 40, 3, 1200, 1200, 1000, 1, 1, 1, 1)
        struct.pack_into('<8h', header, 40, 3, 900, 900, 900, 1, 1, 1, 1)
        struct.pack_into('<hh', header, 70, 16, 32)
        body = body[:100]
    elif 'negative' in name:
        struct.pack_into('<8h', header, 40, 3, -10, 10, -10, 1, 1, 1, 1)
    elif 'overflow' in name:
        struct.pack_into('<8h', header, 40, 7, *([32767] * 7))
    if zipped:
        _zip(path, bytes(header) + body, zeros)
    else:
        _sparse(path, 352 + len(body) + zeros, bytes(header) + body)
    return path


def _zip(path: Path, start: bytes, zeros: int) -> None:
    """Write a gzip file; zeros are one block, compressed once and repeated as members."""
    block = gzip.compress(bytes(100_000_000), 9) if zeros >= 100_000_000 else b''
    with path.open('wb') as file:
        file.write(gzip.compress(start + bytes(zeros % 100_000_000), 6))
        for _ in range(zeros // 100_000_000):
            file.write(block)


READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
from pathlib import Path
from bidsharm.errors import BidsharmError
from bidsharm.imaging.grids import conform
try:
    print('read', conform(Path(sys.argv[1])).image.shape)
except BidsharmError as error:
    print('refused', error)
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(int(peak.split()[1]) // 1000, 'MB')
"""


def try_bomb(name: str, folder: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Read a bomb in a process with a limit of memory."""
    path = bomb(name, folder)
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', READ, str(path), str(MEMORY)], capture_output=True, text=True, timeout=limit_s,
            check=False, env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 'hung', '', False
    finally:
        path.unlink()
    said = done.stdout.strip().replace('\n', '; ')
    expected = BOMBS[name]
    right = done.returncode == 0 and (expected in said if expected else said.startswith(('read', 'refused')))
    happened = said.split(' ', 1)[0] or f'ended with code {done.returncode}'
    return happened, f'{said} in {time.monotonic() - started:.1f} s. {done.stderr[-300:]}'.strip(), right


# --- Pages ------------------------------------------------------------------------------------------------


class _Elements(HTMLParser):
    """Collects elements and the addresses in them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or '' for name, value in attrs}))


_ADDRESSES = (
    'src',
    'href',
    'xlink:href',
    'srcset',
    'data',
    'action',
    'formaction',
    'poster',
    'background',
    'ping',
)


def live_parts(html: str) -> list[str]:
    """Return what a page holds that could run or ask another machine."""
    parser, found = _Elements(), []
    parser.feed(html)
    for tag, attributes in parser.tags:
        if attributes.get('id') == 'pwned' or tag in ('iframe', 'object', 'embed', 'base', 'link', 'form'):
            found.append(f'<{tag}>')
        found += [f'{tag} {name}' for name in attributes if name.startswith('on')]
        for name in _ADDRESSES:
            address = attributes.get(name)
            allowed = r'data:image/(png|webp|jpeg);base64,|#|$|sub-[0-9A-Za-z+]+\.html$'
            if tag == 'a':
                allowed += r'|https://doi\.org/10\.'
            if address is not None and not re.match(allowed, address):
                found.append(f'{tag} {name}={address[:60]}')
    scripts = [tag for tag, _ in parser.tags].count('script')
    return found + ([f'{scripts} scripts'] if scripts > 1 else [])


def find_chromium() -> str:
    """Return the program, or say that there is none."""
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if program is None:
        raise CannotRun('pages in a browser: there is no Chromium')
    return program


def in_browser(page: Path, folder: Path) -> tuple[str, list[str]]:
    """Open a page in Chromium; return its document afterwards, and the machines that it asked for."""
    log = folder / 'net.json'
    done = subprocess.run(
        [find_chromium(), '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update',
         '--no-first-run', '--virtual-time-budget=3000', f'--user-data-dir={folder / "profile"}', f'--log-net-log={log}',
         '--net-log-capture-mode=Everything', '--dump-dom', page.as_uri()],
        capture_output=True, text=True, errors='replace', timeout=180, check=False,
    )  # fmt: skip
    if not done.stdout.strip():
        raise CannotRun(f'pages in a browser: Chromium gave no document ({done.stderr.strip()[-200:]})')
    asked = re.findall(r'https?://[^"\\]*', log.read_text(errors='replace')) if log.exists() else []
    return done.stdout, [address for address in asked if HOST in address]


def check_page(page: Path, folder: Path) -> Outcome:
    """Open a page; nothing in it may have run, and no other machine may have been asked."""
    source = page.read_text(encoding='utf-8')
    before = re.search(r'<title>(.*?)</title>', source, re.DOTALL)
    document, asked = in_browser(page, folder)
    after = re.search(r'<title>(.*?)</title>', document, re.DOTALL)
    wrong = [*live_parts(source), *live_parts(document), *asked]
    if (
        before is None
        or after is None
        or _plain(before[1]) != _plain(after[1])
        or _plain(after[1]) == 'pwned'
    ):
        wrong.append('the title changed')
    return 'inert in Chromium' if not wrong else 'something ran', ', '.join(wrong), not wrong


def _plain(text: str) -> str:
    import html

    return html.unescape(text).strip()


def hostile_pages(folder: Path) -> list[Path]:
    """Write a page of a subject and one of a group with the payload wherever a text can stand."""
    from bidsharm.workflows.reporting import report_group

    from bidsharm.reports.subject import ErrorEntry, ScanEntry, SkippedEntry, write_subject_report

    check = dict.fromkeys(('name', 'label', 'meaning', 'unit'), PAYLOAD)
    record = {
        'subject': '01', 'session': PAYLOAD, 'scan': f'sub-01{PAYLOAD}', 'contrast': 'T1w', 'site': PAYLOAD, 'verdict': 'warn',
        'harmonizer': dict.fromkeys(('name', 'title', 'target', 'paper', 'doi', 'fidelity', 'device'), PAYLOAD),
        'checks': [{**check, 'value': 0.5, 'warn': 0.9, 'fail': 0.1, 'direction': 'min', 'verdict': 'warn'}],
        'measures': {'before': {'volume_gm_ml': 1.0, 'p90': 1.0}, 'after': {'volume_gm_ml': 2.0, 'p90': 1.0}, 'change': {PAYLOAD: 1.0}},
        'warnings': [PAYLOAD], 'notes': {PAYLOAD: PAYLOAD}, 'outputs': {},
    }  # fmt: skip
    error = ErrorEntry(PAYLOAD, PAYLOAD, PAYLOAD, PAYLOAD, PAYLOAD)
    text = f'# {PAYLOAD}\n\n**{PAYLOAD}** `{PAYLOAD}` 10.1000/{PAYLOAD}'
    page = write_subject_report(
        folder / 'sub-01.html', subject=PAYLOAD, scans=[ScanEntry(record, {}, (PAYLOAD,))], skipped=[SkippedEntry(PAYLOAD, PAYLOAD)],
        errors=[error], methods_text=text, references=[text], provenance={PAYLOAD: PAYLOAD},
    )  # fmt: skip
    records = [{**record, 'subject': f'0{n}', 'site': f'{PAYLOAD}{n}'} for n in (1, 2, 3)]
    group = report_group(folder, records, title=PAYLOAD, failed=[error])
    return [page, *[path for path in group if path.suffix == '.html']]


# --- The part ---------------------------------------------------------------------------------------------


def run(part: Part) -> None:
    """Try everything."""
    for number, one in enumerate(CASES):
        folder = part.work / f'case{number}'
        folder.mkdir()
        happened, said, good = one.check(folder)
        part.add(Row('hostile file', one.name, happened, said.replace(f'{folder}/', ''), good))
        shutil.rmtree(folder, ignore_errors=True)
    for name in BOMBS:
        part.add(Row('hostile file', name, *try_bomb(name, part.work, limit_s=180)))
    for step in (_pages, _whole, _output_refused):
        try:
            step(part)
        except CannotRun as missing:
            part.skip(str(missing))


def _pages(part: Part) -> None:
    find_chromium()
    folder = part.work / 'pages'
    folder.mkdir()
    for page in hostile_pages(folder):
        part.add(
            Row(
                'hostile file',
                f'HTML and scripts in every field of a record: {page.name}',
                *check_page(page, folder),
            )
        )


def _poisoned(root: Path, outside: Path) -> None:
    """Put the payload into everything that a data set says of itself."""
    says = dict.fromkeys(
        ('Manufacturer', 'ManufacturersModelName', 'StationName', 'InstitutionName', 'SoftwareVersions'),
        PAYLOAD,
    )
    for path in root.rglob('*_T1w.json'):
        path.write_text(json.dumps({**says, 'MagneticFieldStrength': '<b id=pwned>3</b>', PAYLOAD: PAYLOAD}))
    (root / 'dataset_description.json').write_text(
        json.dumps(
            {
                'Name': PAYLOAD,
                'BIDSVersion': '1.10.0',
                'License': PAYLOAD,
                'DatasetDOI': f'10.1000/{PAYLOAD}',
                'Authors': [PAYLOAD],
            }
        )
    )
    (root / 'participants.tsv').write_text(
        f'participant_id\tsite\t{PAYLOAD}\nsub-01\t{PAYLOAD}\t{PAYLOAD}\nsub-../../x\t/etc\t1\n'
    )
    anat = next(root.glob('sub-01/**/anat'))
    scan = next(anat.glob('*_T1w.nii.gz'))
    (anat / scan.name.replace('_T1w', '_acq-<img id=pwned src=x onerror=alert(1)>_T1w')).write_bytes(b'x')
    (anat / scan.name.replace('_T1w', '_acq-out_T1w')).symlink_to(outside)
    os.mkfifo(anat / scan.name.replace('_T1w', '_acq-pipe_T1w'))
    broken = scan.with_name(scan.name.replace('_T1w', '_acq-broken_T1w'))
    broken.write_bytes(PAYLOAD.encode())


def _whole(part: Part) -> None:
    """Run participant, group and evaluation on a data set that is hostile wherever it can be."""
    data, out, table = (
        heads(part.work / 'whole', subjects=1, scanners=('northA', 'southB')),
        part.work / 'whole-out',
        part.work / 'evaluated',
    )
    outside = part.work / 'secret.nii.gz'
    outside.write_text(SECRET)
    _poisoned(data, outside)
    files = _checksums_of_files(data)
    options = (
        '--skip-bids-validation',
        '--offline',
        '--sloppy',
        '--harmonizer',
        'zscore',
        '--site',
        'site',
        '--omp-nthreads',
        '1',
    )
    done = app(data, out, 'participant', *options)
    said = done.stdout + done.stderr
    good = (
        done.returncode == 1
        and 'leads out of the data set' in said
        and 'Traceback' not in said
        and '\x1b' not in done.stdout
    )
    part.add(
        Row(
            'hostile file',
            'a whole run on a hostile data set',
            f'exit code {done.returncode}',
            f'{said.count("leads out of the data set")} times "leads out of the data set"; {len(list(out.rglob("*_qc.json")))} scans done',
            good,
        )
    )
    group = app(data, out, 'group', *options)
    part.add(
        Row(
            'hostile file',
            'its group level',
            f'exit code {group.returncode}',
            _last(group.stderr),
            group.returncode == 0,
        )
    )
    (part.work / 'scans.tsv').write_text('participant_id\tsession_id\tscanner\tperson\n' + ''.join(
        f'{path.parent.parent.parent.name}\t{path.parent.parent.name}\t{PAYLOAD}{n}\t../../{PAYLOAD}\n' for n, path in enumerate(sorted(out.rglob('*_desc-harmonized_T1w.nii.gz')))
    ))  # fmt: skip
    evaluated = app(
        table, f'a={out}', '--scans', part.work / 'scans.tsv', '--no-cnn', '--resamples', 20, '--permutations', 2, '--aligned',
        '--given-segmentations', command='bidsharm-evaluate',
    )  # fmt: skip
    part.add(Row('hostile file', 'an evaluation with scripts as scanners and people', f'exit code {evaluated.returncode}',
                 _last(evaluated.stdout + evaluated.stderr), evaluated.returncode in (0, 1)))  # fmt: skip
    leaked = [
        path.name
        for folder in (out, table)
        for path in folder.rglob('*')
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    strangers = sorted(path.name for path in part.work.parent.iterdir() if 'pwned' in path.name) + list(
        map(str, part.work.rglob('pwned'))
    )
    same = _checksums_of_files(data) == files
    part.add(Row('hostile file', 'what these runs read and wrote', 'nothing outside, input unchanged' if same else 'input changed',
                 ', '.join([*leaked, *strangers]), same and not leaked and not strangers))  # fmt: skip
    find_chromium()
    for page in sorted([*out.rglob('*.html'), *table.rglob('*.html')]):
        part.add(Row('hostile file', f'the page {page.name} of these runs', *check_page(page, part.work)))


def _checksums_of_files(folder: Path) -> dict[str, str]:
    """Return checksums of regular files; a pipe has none."""
    return {name: value for name, value in checksums(folder).items() if not (folder / name).is_symlink()}


def _output_refused(part: Part) -> None:
    """Run with an output folder whose parts are links to somewhere else."""
    data, elsewhere = heads(part.work / 'plain', subjects=1, scanners=('northA',)), part.work / 'elsewhere'
    elsewhere.mkdir()
    for name in ('sub-01', 'logs', 'models'):
        out = part.work / f'out-{name}'
        out.mkdir()
        (out / name).symlink_to(elsewhere)
        done = app(
            data,
            out,
            'participant',
            '--skip-bids-validation',
            '--offline',
            '--sloppy',
            '--harmonizer',
            'zscore',
        )
        good = (
            done.returncode == 78
            and 'leads out of the output folder' in done.stderr
            and not any(elsewhere.iterdir())
        )
        part.add(
            Row(
                'hostile file',
                f'{name} in OUTPUT_DIR is a link out of it: a whole run',
                f'exit code {done.returncode}',
                _last(done.stderr),
                good,
            )
        )


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return re.sub(r'/\S*/', '', lines[-1]) if lines else ''
